"""All stress tests at once on a model that knows its texts by heart, and what is said about it."""

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn.data.canary_key import Canary
from jaxunlearn.evals.attacks.canaries import canary_exposures
from jaxunlearn.evals.attacks.exposure import exposures_from_nll, sequence_nll
from jaxunlearn.evals.attacks.families import FAMILIES
from jaxunlearn.evals.attacks.findings import findings
from jaxunlearn.evals.attacks.stress import stress
from jaxunlearn.evals.attacks.target import Doses, Target

from .attack_world import SECRETS, TEMPLATE, world


def target(params, **changed):
    w = world()
    given = {"forget": w.members[:24], "retain": w.members[24:], "holdout": w.outside}
    given["canaries"] = [Canary(TEMPLATE, index, 8) for index in SECRETS]
    return Target(w.model, params, w.tokenizer, 160, **(given | changed))


def test_what_is_known_by_heart_is_told_in_sentences_and_what_is_not_is_not():
    w = world()
    doses = Doses(classifier="logistic")
    families = ["membership", "document", "canaries", "lens", "probe"]
    knows = stress(target(w.knows, reference=(w.model, w.blank)), doses, only=families)
    blank = stress(target(w.blank, is_reference=True), doses, only=families)
    told = findings(knows, blank)
    assert len(told) == sum(len(FAMILIES[name].metrics) for name in families) - 1  # the last layer knows most
    assert all("retrained" in sentence for sentence in told if "Reference" not in sentence)
    assert "24 of 24 documents are judged to have been read" in " ".join(told)
    assert "inserted secrets are exposed" in " ".join(told)
    assert [sentence for sentence in findings(blank) if "documents are judged" not in sentence] == []
    [only] = findings(knows, knows)
    assert "judged" in only


def test_a_model_whose_outputs_are_not_finite_breaks_its_own_measures_only():
    w = world()
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), w.blank)
    found = stress(target(broken), only=["quantisation", "document", "paraphrase"])
    problems = [measure.get("problem") for measure in found.values()]
    assert len(problems) == 4
    assert all("not finite" in problem or "NaN" in problem for problem in problems)
    assert findings(found) == []


def test_canaries_of_a_key_are_ranked_like_any_others():
    w = world()
    key = [Canary(TEMPLATE, index, 8) for index in (*SECRETS, 5)]
    ask = {"tokenizer": w.tokenizer, "max_length": 160}
    found = canary_exposures(w.model, w.knows, key, **ask)
    nll = sequence_nll(w.model, w.knows, w.candidates)
    for one, exposure in zip(key, found, strict=True):
        others = [value for index, value in enumerate(nll) if index != one.index]
        assert exposure.bits == exposures_from_nll(nll[[one.index]], others)[0].bits
    sampled = canary_exposures(w.model, w.knows, key, candidates=40, method="sampled", **ask)
    assert [(one.method, one.candidates, one.space) for one in sampled] == [("sampled", 40, 100)] * 3
    assert all(low <= exact.bits <= high for exact, (_, (low, high), *_) in zip(found, sampled, strict=True))
    for arguments, message in (
        ({"canaries": []}, "no canary"),
        ({"candidates": 1}, "candidates=1"),
        ({"candidates": 9, "method": "exact"}, "needs all 100 candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            canary_exposures(w.model, w.knows, **({"canaries": key} | ask | arguments))


def test_the_forget_set_and_the_names_are_checked():
    with pytest.raises(ValueError, match="forget set is empty"):
        stress(target(world().blank, forget=[]))
    with pytest.raises(ValueError, match="did you mean membership"):
        stress(target(world().blank), only=["members"])
