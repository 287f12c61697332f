"""The whole suite on a bigram model over characters: numbers by other routes, nothing missing in silence."""

import json
import types

import numpy as np
import pytest
from scipy.stats import ks_2samp

from jaxunlearn.data import encode
from jaxunlearn.data.records import from_rows
from jaxunlearn.evals import evaluate, exact_memorisation, kl, score, why_missing, write_result
from jaxunlearn.evals.catalogue import CORE

from .letters import ALPHABET, MODEL, TOKENIZER, encoded, generate, table


@pytest.fixture(scope="module")
def sets():
    return types.SimpleNamespace(
        forget=encoded(12, 0),
        retain=encoded(9, 1),
        holdout=encoded(10, 2, wrong=0, paraphrase=False),
        authors=encoded(5, 3, paraphrase=False),
        world=encoded(6, 4, paraphrase=False),
    )


@pytest.fixture(scope="module")
def full(sets):
    return evaluate(
        MODEL, table(0), TOKENIZER, **vars(sets), reference=(MODEL, table(1)), generate=generate, max_new_tokens=12
    )


def test_everything_is_computed_when_everything_is_given(full):
    assert list(full) == list(CORE)
    assert {name: why_missing(measure) for name, measure in full.items() if why_missing(measure)} == {}


def test_a_result_is_strict_json_and_never_overwritten(full, tmp_path):
    path = write_result(tmp_path / "new" / "result.json", full)
    assert json.loads(path.read_text()) == json.loads(json.dumps(full, allow_nan=False))
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        write_result(path, full)


def test_numbers_agree_with_their_own_functions(full, sets):
    scores = score(MODEL, table(0), sets.forget)
    assert full["forget_probability"]["agg_value"] == pytest.approx(np.exp(-scores.nll).mean())
    assert full["forget_nll"]["agg_value"] == pytest.approx(-np.concatenate(scores.log_probs).mean())
    assert full["forget_exact_memorisation"]["agg_value"] == pytest.approx(exact_memorisation(scores.hits).mean())
    low, high = full["tug_of_war_kl"]["interval"]
    assert low < full["tug_of_war_kl"]["agg_value"] < high
    divergence = kl(MODEL, table(1), table(0), sets.forget)
    assert full["forget_kl"]["agg_value"] == pytest.approx(divergence.mean_kl)
    assert full["forget_kl"]["value_by_index"]["3"] == pytest.approx(divergence.kl[3].mean())
    nine = [
        full[f"{part}_{name}"]["agg_value"]
        for part in ("retain", "authors", "world")
        for name in ("probability", "rouge_l", "truth_ratio")
    ]
    expected = 0.0 if 0.0 in nine else 9 / sum(1 / value for value in nine)
    assert full["model_utility"]["agg_value"] == pytest.approx(expected)


def test_truth_ratio_and_quality_by_encoding_each_variant_alone(full, sets):
    def log_ratio(seed):
        out = []
        for one in sets.forget:
            texts = [one.record.raw["paraphrased_answer"], *one.record.raw["perturbed_answer"]]
            rows = from_rows([{"prompt": one.record.prompt, "completion": text} for text in texts])
            nll = score(MODEL, table(seed), encode(rows, TOKENIZER, max_length=64)).nll
            out.append(nll[1:].mean() - nll[0])
        return np.array(out)

    mine, theirs = log_ratio(0), log_ratio(1)
    assert full["forget_truth_ratio"]["agg_value"] == pytest.approx(np.exp(-np.abs(mine)).mean(), rel=1e-5)
    test = ks_2samp(mine, theirs)
    assert full["forget_quality"]["agg_value"] == pytest.approx(test.pvalue)
    assert full["forget_quality"]["ks_statistic"] == pytest.approx(test.statistic)
    assert full["forget_quality"]["n"] == 12


def test_a_stored_result_stands_in_for_scoring_the_retrained_model_again(full, sets):
    retrained = evaluate(MODEL, table(1), TOKENIZER, forget=sets.forget)
    again = evaluate(MODEL, table(0), TOKENIZER, forget=sets.forget, reference_result=retrained)
    assert again["forget_quality"]["agg_value"] == pytest.approx(full["forget_quality"]["agg_value"])
    assert again["forget_kl"]["skipped"] == "no retrained model given"


def test_batch_size_changes_no_number(full, sets):
    small = evaluate(MODEL, table(0), TOKENIZER, **vars(sets), reference=(MODEL, table(1)), batch_size=3)
    for name, measure in small.items():
        if why_missing(measure) is None:
            assert measure["agg_value"] == pytest.approx(full[name]["agg_value"], rel=1e-5, abs=1e-6), name


def test_what_cannot_be_computed_says_why():
    bare = evaluate(MODEL, table(0), TOKENIZER, forget=encoded(4, 0, wrong=0))
    reasons = {name: measure.get("skipped") for name, measure in bare.items()}
    assert reasons["forget_probability"] is None
    assert reasons["forget_truth_ratio"] == '4 of 4 records have no "perturbed_answer" (first: records, record 1)'
    assert reasons["forget_quality"] == reasons["forget_truth_ratio"]
    assert reasons["forget_kl"] == "no retrained model given"
    assert reasons["forget_loss_auc"] == "no holdout set given"
    assert reasons["forget_rouge_l"] == "generation was not asked for"
    assert reasons["retain_probability"] == "no retain set given"
    assert reasons["model_utility"] == "no retain, authors, world set given"


def test_a_model_that_broke_is_reported_not_averaged(sets):
    params = table(0).at[ALPHABET.index("h") + 2].set(np.nan)
    result = evaluate(MODEL, params, TOKENIZER, **vars(sets), reference=(MODEL, table(1)))
    json.dumps(result, allow_nan=False)
    for name in ("forget_probability", "forget_exact_memorisation", "forget_kl"):
        assert result[name]["agg_value"] is None
        assert "values not finite, the first at index" in result[name]["problem"]
    assert "not finite" in result["forget_quality"]["problem"]
    assert "not finite" in result["forget_loss_auc"]["problem"]
    assert result["model_utility"]["agg_value"] is None


def test_generated_texts_are_kept_beside_their_recall(full, sets):
    measure = full["forget_rouge_l"]
    assert len(measure["generated_by_index"]) == measure["n"] == 12
    assert all(0 <= value <= 1 for value in measure["value_by_index"].values())


def test_an_empty_forget_set_is_refused():
    with pytest.raises(ValueError, match="the forget set is empty"):
        evaluate(MODEL, table(0), TOKENIZER, forget=[])


def test_variants_longer_than_the_context_are_named(sets):
    with pytest.raises(ValueError, match=r"perturbed_answer|paraphrased_answer"):
        evaluate(MODEL, table(0), TOKENIZER, forget=sets.forget, max_length=14)
