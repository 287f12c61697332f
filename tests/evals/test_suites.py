"""Suites on a bigram model over characters: each number by another route, what is shared done once, gaps named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import encode, from_rows
from jaxunlearn.data.layouts import MuseData
from jaxunlearn.evals import METRICS, Run, Sources, build, run_suites, score, why_missing
from jaxunlearn.evals.conflict import worded
from jaxunlearn.evals.multiple_choice import choices
from jaxunlearn.evals.muse import privleak_interval
from jaxunlearn.evals.suites import Choice, KnowUnDo, Privacy, memorisation_suite, muse_suite, runner, tofu_suite

from .letters import ALPHABET, MODEL, QUESTIONS, TOKENIZER, encoded, generate, nll_of, table, word
from .test_text_metrics import f1_by_hand

LENGTH = 400
RUN = Run(MODEL, table(0), TOKENIZER)


def texts(count, length, seed):
    rng = np.random.default_rng(seed)
    return from_rows([{"text": "".join(rng.choice(list("abcdefgh ."), length))} for _ in range(count)])


def muse_data():
    rng = np.random.default_rng(3)
    asked = lambda n: [{"question": f"{word(rng)}?", "answer": f"{word(rng)} {word(rng)}"} for _ in range(n)]
    verbmem = [{"prompt": f"{word(rng)} ", "gt": " ".join(word(rng) for _ in range(40))} for _ in range(5)]
    parts = (texts(6, 30, seed) for seed in (4, 5, 6))
    return MuseData(verbmem, asked(4), asked(2), asked(4), asked(2), *parts)


@pytest.fixture(scope="module")
def suites():
    forget, retain = encoded(7, 0), encoded(5, 1)
    holdout = encoded(6, 2, wrong=0, paraphrase=False)
    return [
        memorisation_suite(TOKENIZER, forget=forget, retain=retain, new_tokens=9, max_length=LENGTH),
        muse_suite(muse_data(), TOKENIZER, max_length=LENGTH),
        KnowUnDo(forget, retain),
        Privacy(forget, holdout),
        Choice(choices(QUESTIONS, TOKENIZER, max_length=LENGTH)),
    ]


@pytest.fixture(scope="module")
def found(suites):
    return run_suites(suites, RUN, generate=generate, max_length=LENGTH)


def test_every_row_is_there_with_values_and_intervals_or_a_reason(found, suites):
    assert set(found) == {name for suite in suites for name in suite.rows}
    assert set(found) <= set(METRICS)
    json.dumps(found, allow_nan=False)
    missing = {name: why_missing(m) for name, m in found.items() if why_missing(m)}
    assert missing == {
        "forget_k_extractable": "no text has 100 tokens with the first 50 as its beginning",
        "muse_privleak": "no retrained model given",
        "muse_privleak_open_unlearning": "no retrained model given",
    }
    for name, measure in found.items():
        if name not in missing:
            low, high = measure["interval"]
            assert low <= measure["agg_value"] <= high, name
            assert len(measure["value_by_index"]) == measure["n"] > 0, name


def test_perplexity_weighs_tokens(found, suites):
    rows = [nll_of(one.tokens, np.flatnonzero(one.loss_mask)) for one in suites[0].forget]
    assert found["forget_perplexity"]["agg_value"] == pytest.approx(np.exp(np.concatenate(rows).mean()), rel=1e-5)
    assert found["forget_perplexity"]["value_by_index"]["2"] == pytest.approx(np.exp(rows[2].mean()), rel=1e-5)
    assert found["knowundo_unlearn_perplexity"]["agg_value"] == found["forget_perplexity"]["agg_value"]


def test_extraction_likelihood_by_continuing_every_prefix(found, suites):
    measure = found["forget_el_10"]
    for i, one in enumerate(suites[0].forget):
        places = np.flatnonzero(one.loss_mask)
        truth, start, T = one.tokens[places].tolist(), places[0], len(places)
        if T <= 10:
            assert str(i) not in measure["value_by_index"]
            continue
        total = 0.0
        for k in range(1, T):
            prefix = one.tokens[: start + k].tolist()
            [written] = generate(MODEL, table(0), [prefix], max_new_tokens=T - k, stop_ids=())
            grams, suffix = ([tuple(r[j : j + 10]) for j in range(len(r) - 9)] for r in (written, truth[k:]))
            total += sum(g in suffix for g in grams) / len(suffix) if suffix else 0.0
        assert measure["value_by_index"][str(i)] == pytest.approx(total / (T - 10))
    assert measure["n"] + measure["too_short"] == 7


def test_a_memorising_model_extracts_everything():
    """A bigram table that maps each letter to the next one, and z to the end, writes the alphabet by heart."""
    cycle = 20.0 * jnp.roll(jnp.eye(table(0).shape[0]), 1, axis=1)
    cycle = cycle.at[ALPHABET.index("z") + 2, 1].set(40.0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    forget = encode(from_rows([{"prompt": letters[:3], "completion": letters[3:]}]), TOKENIZER, max_length=64)
    whole = encode(from_rows([{"text": "a" * 120}]), TOKENIZER, max_length=130)
    still = 20.0 * jnp.eye(table(0).shape[0])
    memorised = memorisation_suite(TOKENIZER, forget=forget, max_length=64)
    result = run_suites([memorised], RUN._replace(params=cycle), generate=generate, max_length=64)
    assert result["forget_el_10"]["agg_value"] == pytest.approx(1.0)
    # The prompt ends with the space that joins it, after which the table does not go on with d.
    assert result["forget_extraction_strength"]["agg_value"] == pytest.approx(1 - 1 / 24)
    repeated = memorisation_suite(TOKENIZER, forget=whole, max_length=130)
    result = run_suites([repeated], RUN._replace(params=still), generate=None)
    assert result["forget_k_extractable"]["agg_value"] == 1.0
    assert result["forget_el_10"]["skipped"] == "generation was not asked for"


def test_conflicting_statements_are_scored_in_both_wordings(found, suites):
    for wording in ("formal", "informal"):
        wins = []
        for one in suites[0].forget:
            pair = [one.record.completion, one.record.raw["perturbed_answer"][0]]
            nll = []
            for text in pair:
                tokens = TOKENIZER(worded(text, wording))["input_ids"][0]
                nll.append(nll_of([0, *tokens], np.arange(1, len(tokens) + 1)).mean())
            wins.append(0.5 if nll[0] == nll[1] else float(nll[0] < nll[1]))
        assert list(found[f"forget_conflict_{wording}"]["value_by_index"].values()) == wins


def test_muse_by_generating_and_comparing_one_at_a_time(found):
    data = muse_data()
    for key, rows, solved in (
        ("muse_knowmem_forget", data.forget_qa, data.forget_icl),
        ("muse_knowmem_retain", data.retain_qa, data.retain_icl),
    ):
        shots = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in solved)
        for i, row in enumerate(rows):
            prompt = [0, *TOKENIZER(f"{shots}Question: {row['question']}\nAnswer: ")["input_ids"][0]]
            [written] = generate(MODEL, table(0), [prompt], max_new_tokens=32, stop_ids=(1,))
            answer = TOKENIZER.decode(written).strip().split("\n\n")[0]
            assert found[key]["value_by_index"][str(i)] == pytest.approx(f1_by_hand(answer, row["answer"]))
    for i, row in enumerate(data.verbmem):
        prompt = [0, *TOKENIZER(row["prompt"])["input_ids"][0]]
        [written] = generate(MODEL, table(0), [prompt], max_new_tokens=128, stop_ids=(1,))
        expected = f1_by_hand(TOKENIZER.decode(written).strip(), row["gt"][:128])
        assert found["muse_verbmem_forget"]["value_by_index"][str(i)] == pytest.approx(expected)


def test_privleak_needs_the_retrained_result_and_is_zero_against_itself(found, suites):
    again = run_suites(suites[1:2], RUN._replace(reference_result=found), generate=None)
    assert again["muse_privleak"]["agg_value"] == again["muse_privleak_open_unlearning"]["agg_value"] == 0.0
    other = run_suites(suites[1:2], RUN._replace(params=table(7), reference_result=found), generate=None)
    ours, theirs = other["muse_min_k_auc"]["agg_value"], found["muse_min_k_auc"]["agg_value"]
    assert other["muse_privleak"]["agg_value"] == pytest.approx(((1 - ours) - (1 - theirs)) / (1 - theirs) * 100)
    # Without its result the retrained model is asked, unless it is the model under test.
    asked = run_suites(suites[1:2], RUN._replace(params=table(7), reference=(MODEL, RUN.params)), generate=None)
    assert asked["muse_privleak"] == other["muse_privleak"]
    itself = run_suites(suites[1:2], RUN._replace(reference=(MODEL, RUN.params)), generate=None)
    assert itself["muse_privleak"]["agg_value"] == 0.0
    assert itself["muse_privleak"]["interval"] == [0.0, 0.0]


def test_the_interval_of_privleak_draws_texts_once_for_both_models():
    rng = np.random.default_rng(5)
    hard, retrained = rng.normal(size=(2, 30)), rng.normal(size=(2, 30))
    sides = [tuple(hard + model + np.array([[shift], [0.0]])) for model, shift in ((retrained, 1.0), (retrained, 0.0))]
    low, high = privleak_interval(*sides)
    picks = [np.random.default_rng(seed).integers(0, 30, (2, 30)) for seed in range(600)]
    auc = lambda side, pick: np.mean(side[0][pick[0]][:, None] > side[1][pick[1]])
    drawn = [[auc(side, pick) for side in sides] for pick in picks]
    expected = np.quantile([(theirs - ours) / (1 - theirs) * 100 for ours, theirs in drawn], [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.15 * abs(expected[0] - expected[1]))


def test_other_answers_that_are_too_long_are_cut_where_records_are():
    forget = encoded(5, 0)
    found = tofu_suite(TOKENIZER, forget=forget, max_length=LENGTH).variants["forget"].encoded
    limit = max(len(one.tokens) for one in found) - 1
    with pytest.raises(ValueError, match="pass --truncate"):
        tofu_suite(TOKENIZER, forget=forget, max_length=limit)
    cut = tofu_suite(TOKENIZER, forget=forget, max_length=limit, truncate=True).variants["forget"].encoded
    assert [len(one.tokens) for one in cut] == [min(len(one.tokens), limit) for one in found]


def test_shared_texts_are_scored_once_and_shared_prompts_continued_once(suites, monkeypatch):
    scored, asked = [], []

    def counted(model, params, examples, **options):
        scored.append([id(example) for example in examples])
        return score(model, params, examples, **options)

    def counted_generate(model, params, prompts, *, max_new_tokens, stop_ids):
        asked.extend((tuple(prompt), max_new_tokens, stop_ids) for prompt in prompts)
        return generate(model, params, prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids)

    monkeypatch.setattr(runner, "score", counted)
    forget, retain = suites[0].forget, suites[0].retain
    tofu = tofu_suite(TOKENIZER, forget=forget, retain=retain, new_tokens=9, max_length=LENGTH)
    run_suites([*suites, tofu], RUN, generate=counted_generate, max_length=LENGTH)
    assert len(scored) == 1
    assert len(scored[0]) == len(set(scored[0]))
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size_changes_no_number(found, suites, batch_size):
    other = run_suites(suites, RUN._replace(batch_size=batch_size), generate=generate, max_length=LENGTH)
    for name, measure in other.items():
        if why_missing(measure) is None:
            assert measure["agg_value"] == pytest.approx(found[name]["agg_value"], rel=1e-5, abs=1e-6), name


def test_a_model_that_broke_is_reported_not_averaged(suites):
    broken = run_suites(suites, RUN._replace(params=table(0) * jnp.nan), generate=None)
    json.dumps(broken, allow_nan=False)
    assert {name for name, m in broken.items() if m["agg_value"] is not None} == set()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture
def folders(tmp_path):
    data = muse_data()
    for name, part in {"verbmem/forget": data.verbmem, "knowmem/forget_qa": data.forget_qa}.items():
        write(tmp_path / "muse" / f"{name}.json", part)
    for name, part in {
        "forget_qa_icl": data.forget_icl,
        "retain_qa": data.retain_qa,
        "retain_qa_icl": data.retain_icl,
    }.items():
        write(tmp_path / "muse" / "knowmem" / f"{name}.json", part)
    for name in ("forget", "retain", "holdout"):
        write(tmp_path / "muse" / "privleak" / f"{name}.json", [dict(record.raw) for record in getattr(data, name)])
    for name in ("unlearn", "retention"):
        write(tmp_path / "knowundo" / f"{name}_val.json", [{"text": f"{name}?", "labels": "yes"}] * 3)
    write(tmp_path / "choice" / "asked.json", QUESTIONS)
    return {name: str(tmp_path / name) for name in ("muse", "knowundo", "choice")}


@pytest.mark.parametrize(
    ("name", "data", "built"),
    [
        ("muse", ["muse"], ["muse"]),
        ("knowundo", ["knowundo"], ["knowundo"]),
        ("choice", ["choice"], ["choice"]),
        ("memorisation", ["muse"], ["memorisation"]),
        ("privacy", ["muse"], ["privacy"]),
        ("all", ["knowundo", "choice"], ["knowundo", "memorisation", "choice"]),
        ("all", ["muse", "choice"], ["muse", "memorisation", "privacy", "choice"]),
    ],
)
def test_suites_are_built_from_what_the_data_allow(folders, name, data, built):
    suites = build(name, Sources(data=[folders[part] for part in data]), TOKENIZER, max_length=LENGTH)
    assert [suite.name for suite in suites] == built


def test_records_of_ones_own_take_the_place_of_a_layouts(folders, found):
    own = [one.record for one in encoded(7, 0)]
    sources = Sources(data=[folders["muse"]], forget=own, limit=4)
    [suite] = build("memorisation", sources, TOKENIZER, max_length=LENGTH)
    result = run_suites([suite], RUN, generate=generate, max_length=LENGTH)
    first = list(found["forget_nll"]["value_by_index"].values())[:4]
    assert list(result["forget_nll"]["value_by_index"].values()) == pytest.approx(first)
    assert result["retain_nll"]["skipped"] == "no retain set given"


def test_a_fold_of_muse_takes_the_place_of_its_forget_set(folders, tmp_path):
    fold = [f"text of the {name} fold" for name in ("first", "second", "third")]
    write(tmp_path / "muse" / "sust" / "forget_2.json", fold)
    plain, other = (
        build("all", Sources(data=[folders["muse"]], fold=fold), TOKENIZER, max_length=LENGTH)
        for fold in (None, "sust/2")
    )
    for suite, before in zip(other, plain, strict=True):
        assert [one.record.completion for one in suite.forget] == fold
        if suite.name == "muse":
            assert suite.verbmem == before.verbmem
            assert suite.knowmem_forget == before.knowmem_forget
        if suite.name != "memorisation":
            assert [one.text for one in suite.holdout] == [one.text for one in before.holdout]
    [auc] = [run_suites([suite], RUN)["muse_min_k_auc"] for suite in other if suite.name == "muse"]
    assert (auc["n"], auc["n_holdout"]) == (3, 6)
    with pytest.raises(ValueError, match=r"lacks 1 of 8 files: scal/forget_1 "):
        build("muse", Sources(data=[folders["muse"]], fold="scal/1"), TOKENIZER, max_length=LENGTH)
    with pytest.raises(ValueError, match=r"no forget set called 'scal/5': choose one of scal/1, "):
        build("muse", Sources(data=[folders["muse"]], fold="scal/5"), TOKENIZER, max_length=LENGTH)
    with pytest.raises(ValueError, match="--fold scal/1 is one of MUSE's forget sets"):
        build("choice", Sources(data=[folders["choice"]], fold="scal/1"), TOKENIZER, max_length=LENGTH)


def test_a_retain_set_is_measured_alone():
    """As where a model is trained and nothing is to be forgotten."""
    suite = memorisation_suite(TOKENIZER, retain=encoded(5, 1), new_tokens=9, max_length=LENGTH)
    both = memorisation_suite(TOKENIZER, forget=encoded(7, 0), retain=encoded(5, 1), new_tokens=9, max_length=LENGTH)
    alone, beside = (run_suites([one], RUN, generate=generate, max_length=LENGTH) for one in (suite, both))
    assert set(alone) == set(beside)
    for name, measure in alone.items():
        if name.startswith("retain"):
            assert measure == beside[name], name
        else:
            assert measure["skipped"] == "no forget set given", name
    with pytest.raises(ValueError, match="both sets are empty"):
        memorisation_suite(TOKENIZER, max_length=LENGTH)


def test_data_that_do_not_fit_are_named(folders):
    with pytest.raises(ValueError, match="no suite is called 'toffu'"):
        build("toffu", Sources(), TOKENIZER, max_length=LENGTH)
    with pytest.raises(ValueError, match="found no data in what was given: give --forget FILE and --holdout FILE"):
        build("privacy", Sources(), TOKENIZER, max_length=LENGTH)
    with pytest.raises(
        ValueError, match=r"verbmem, prompt 1: \d+ tokens and 128 new ones pass the model's context of 64"
    ):
        build("muse", Sources(data=[folders["muse"]]), TOKENIZER, max_length=64)
    with pytest.raises(ValueError, match="two suites share a name"):
        run_suites([KnowUnDo([], []), KnowUnDo([], [])], RUN)


def test_a_metric_of_ones_own_joins_the_same_pass(suites):
    class Longest:
        """How many loss tokens the longest text has."""

        name, rows = "longest", {"longest": METRICS["forget_nll"]._replace(label="Longest")}

        def texts(self):
            return {"all": suites[0].forget}

        def prompts(self, scores):
            return {}

        def measure(self, seen):
            return {"longest": {"agg_value": float(seen.scores["all"].tokens.max())}}

    from jaxunlearn.evals import catalogue, register

    register(Longest.rows)
    try:
        result = run_suites([Longest()], RUN)
    finally:
        del catalogue.METRICS["longest"]
    assert result["longest"]["agg_value"] == max(int(one.loss_mask.sum()) for one in suites[0].forget)
