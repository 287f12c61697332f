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
    families = ["membership", "document", "canaries", "prefix"]
    knows = stress(target(w.knows, reference=(w.model, w.blank)), doses, only=families)
    blank = stress(target(w.blank, is_reference=True), doses, only=families)
    told = findings(knows, blank)
    assert (
        len(told) == sum(len(FAMILIES[name].metrics) for name in families) - 1
    )  # what is known by heart needs no prefix
    assert all("retrained" in sentence for sentence in told if "Reference" not in sentence)
    assert "24 of 24 documents are judged to have been read" in " ".join(told)
    assert "inserted secrets are exposed" in " ".join(told)
    assert [sentence for sentence in findings(blank) if "documents are judged" not in sentence] == []
    [only] = findings(knows, knows)
    assert "judged" in only


def test_sentences_say_what_the_numbers_support():
    def measure(value, low, high, **extra):
        return {"agg_value": value, "interval": [low, high], **extra}

    cases = {
        ("forget_loss_auc", 0.3, 0.2, 0.4): "can be told from unseen",
        ("forget_loss_auc", 0.6, 0.4, 0.8): None,
        ("probe_auc", 0.3, 0.2, 0.4): None,
        ("quantisation_int4_robustness", 0.5, 0.4, 0.6): "rounding to 4 bits brings some of it back",
        ("quantisation_int4_robustness", 0.9, 0.8, 1.0): None,
        ("paraphrase_return", 0.2, 0.1, 0.3): "come back when asked in other words",
        ("prefix_return", 0.0, 0.0, 0.0): None,
        ("canary_exposure", 1.5, 1.0, 2.0): None,
    }
    for (name, *numbers), expected in cases.items():
        told = findings({name: measure(*numbers)})
        assert (told == []) if expected is None else expected in told[0]
    for name, kept, gone in (("forget_el_10", 0.2, 0.0), ("forget_conflict_formal", 0.7, 0.4)):
        assert len(findings({name: measure(0.8, kept, 0.9)})) == 1
        assert findings({name: measure(0.5, gone, 0.9)}) == []
    lens = measure(0.7, 0.6, 0.8, layer=1, by_layer={"1": 0.7, "2": 0.1})
    assert "layer 1 still knows more than the output (0.100)" in findings({"logit_lens_memorisation": lens})[0]
    audit = measure(0.7, 0.6, 0.8, verdict_by_index={"0": "member", "1": "undecided", "2": "no evidence"})
    assert "1 of 3 documents are judged to have been read, 1 cannot be" in findings({"forget_document_auc": audit})[0]
    audit["never_seen"] = {"documents": 12, "needed": 36}
    assert "it takes 36 documents that no model saw, and there were 12" in findings({"forget_document_auc": audit})[0]
    audit["never_seen"]["documents"] = 36
    assert "it takes" not in findings({"forget_document_auc": audit})[0]
    again = {"relearning_robustness": measure(1.0, 1.0, 1.0, unlearned=[0.9, 0.9], retrained=[0.1, 0.2])}
    assert "says nothing here" in findings(again)[0]
    again["relearning_robustness"] = measure(0.3, 0.2, 0.5, unlearned=[0.1, 0.6], retrained=[0.1, 0.2])
    assert "a little training brings some of it back" in findings(again)[0]


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
