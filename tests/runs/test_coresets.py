"""A coreset of forget records takes along what belongs to each: other answers and counterfactual prompts."""

import numpy as np

from jaxunlearn.data import Counterfactuals, shapes_of
from jaxunlearn.runs.alternatives import Alternatives
from jaxunlearn.runs.coresets import Records, taken


def test_what_belongs_to_a_record_goes_with_it(encoded):
    forget = sorted(encoded.forget, key=lambda one: len(one.tokens))
    count, places = len(forget), shapes_of(forget)[1] + 8  # as if a longer record were left out
    rows = np.arange(count, dtype=np.int32)
    tokens, at = (np.broadcast_to(rows[:, None, None], (count, 3, width)) for width in (16, places))
    records = Records(forget, encoded.retain, Alternatives(forget=forget[::-1]), Counterfactuals(tokens, at, rows / 9))
    few = taken(records, "forget", [0, 2])
    assert few.forget == [forget[0], forget[2]]
    assert few.others.forget == [forget[-1], forget[-3]]
    assert few.prompts.places.shape == (2, 3, shapes_of(few.forget)[1])
    assert few.prompts.tokens[:, 0, 0].tolist() == few.prompts.places[:, 0, 0].tolist() == [0, 2]
    kept = taken(few, "retain", [1])
    assert kept.retain == [encoded.retain[1]]
    assert kept.prompts is few.prompts
