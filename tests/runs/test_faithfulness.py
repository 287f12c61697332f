"""`jaxunlearn compare --faithfulness`: pools of models from result files, and metrics in the order of their AUC."""

import json
from itertools import product
from pathlib import Path

import pytest

from jaxunlearn.cli import main
from jaxunlearn.evals import METRICS
from jaxunlearn.evals.faithfulness import knowing_is, rank

LOGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tofu-logs"
KNOWS = {
    "seed-0": {"forget_nll": 0.1, "forget_exact_memorisation": 0.9, "muse_privleak": -60.0, "retain_nll": 0.1},
    "seed-1": {"forget_nll": 0.2, "forget_exact_memorisation": 0.4, "muse_privleak": 5.0, "retain_nll": 0.2},
    "seed-2": {"forget_nll": 0.3, "forget_exact_memorisation": 0.7, "muse_privleak": -20.0, "retain_nll": 0.3},
}
NEVER = {
    "other-0": {"forget_nll": 3.0, "forget_exact_memorisation": 0.4, "muse_privleak": 5.0, "retain_nll": 0.1},
    "other-1": {"forget_nll": 2.0, "forget_exact_memorisation": 0.5, "muse_privleak": -90.0, "retain_nll": 0.4},
}


def measures(values):
    return {name: {"agg_value": value, "value_by_index": {}} for name, value in values.items()}


def write(path, **columns):
    path.write_text(json.dumps({"results": {name: measures(values) for name, values in columns.items()}}))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "knows.json", **KNOWS), write(tmp_path / "never.json", **NEVER)


def by_hand(metric, sign):
    pairs = [(sign * a[metric], sign * b[metric]) for a, b in product(KNOWS.values(), NEVER.values())]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_metrics_are_ranked_by_how_often_a_model_that_knows_is_told(files, tmp_path, capsys):
    out = tmp_path / "out.json"
    every = ["--faithfulness", "--column", "*", "--reference-column", "*"]
    assert main(["compare", *files, *every, "--out", str(out)]) == 0
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "Faithfulness of 3 metrics over 3 that know and 2 that never did; 1 left out" in shown
    assert [name.rpartition(": ")[2] for name in (*found["knows"], *found["never_knew"])] == [*KNOWS, *NEVER]
    wanted = {"forget_nll": -1, "forget_exact_memorisation": 1, "muse_privleak": -1}
    assert set(found["metrics"]) == set(wanted)
    for name, sign in wanted.items():
        row = found["metrics"][name]
        assert row["faithfulness"] == pytest.approx(by_hand(name, sign)), name
        assert row["knowing_is"] == {1: "higher", -1: "lower"}[sign]
        assert row["n"] == [3, 2]
        assert row["interval"][0] <= row["faithfulness"] <= row["interval"][1]
    ranked = [row["faithfulness"] for row in found["metrics"].values()]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) == 3
    assert list(found["left_out"]) == ["retain_nll"]
    assert shown.index("NLL, forget") < shown.index("Exact memorisation, forget")
    # The options beside it run it again, to the byte.
    assert main(["compare", "--config", str(tmp_path / "out.yaml"), "--out", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


def test_pools_are_made_of_columns_that_fit_and_of_further_files(files, tmp_path, capsys):
    single = tmp_path / "single.json"
    single.write_text(json.dumps(measures(NEVER["other-0"])))
    mixed = write(tmp_path / "mixed.json", after=KNOWS["seed-0"], retrained=NEVER["other-1"])
    argv = ["compare", mixed, mixed, "--faithfulness", "--more-reference", str(single), "--out"]
    assert main([*argv, str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["knows"], found["never_knew"]) == ([f"{mixed}: after"], [f"{mixed}: retrained", f"{single}: single"])
    argv = ["compare", files[0], files[1], "--faithfulness", "--reference-column", "*-1", "--column", "seed-[01]"]
    assert main([*argv, "--more-run", mixed, "--out", str(tmp_path / "b.json")]) == 2
    assert f"{mixed} holds after, retrained, and no 'seed-[01]'" in capsys.readouterr().err
    assert main([*argv, "--out", str(tmp_path / "b.json")]) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert (len(found["knows"]), len(found["never_knew"])) == (2, 1)


def test_a_metric_that_some_model_lacks_is_left_out_with_the_reason(files, tmp_path):
    more = write(tmp_path / "more.json", one={"forget_nll": 0.5, "forget_loss_auc": 0.9})
    every = ["--faithfulness", "--column", "*", "--reference-column", "*", "--out", str(tmp_path / "out.json")]
    assert main(["compare", *files, "--more-run", more, *every]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["metrics"]) == ["forget_nll"]
    assert found["left_out"]["forget_exact_memorisation"] == "1 of 6 models have no value"
    assert found["left_out"]["forget_loss_auc"] == "5 of 6 models have no value"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["KNOWS", "KNOWS", "--column", "*", "--reference-column", "seed-1"], "seed-1 is among the models that know"),
        (["KNOWS", "NEVER"], "holds seed-0, seed-1, seed-2, and no 'after'"),
        (["KNOWS", "NEVER", "--limit", "3"], "--limit 3 is about two results"),
        (["KNOWS", "NEVER", "--open-unlearning", "x.json"], "--open-unlearning x.json is about two results"),
        (["KNOWS", "NONE", "--column", "*"], "no metric can be ranked (forget_nll: 1 of 4 models have no value"),
        (["KNOWS", "NEVER", "--more-run", "KNOWS", "--faithfulness", "False"], "--more-run is for --faithfulness"),
    ],
)
def test_pools_that_cannot_be_compared_are_refused(files, tmp_path, capsys, argv, message):
    none = write(tmp_path / "none.json", one={"retain_nll": 1.0})
    places = dict(zip(("KNOWS", "NEVER", "NONE"), (*files, none), strict=True))
    assert main(["compare", "--faithfulness", *(places.get(part, part) for part in argv)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_the_published_logs_tell_the_full_model_from_the_retrained(tmp_path):
    if not LOGS.is_dir():
        pytest.skip(f"needs TOFU's published logs, not found at {LOGS}")
    files = [str(LOGS / f"llama2-7b_{name}.json") for name in ("full", "retain90")]
    assert main(["compare", *files, "--faithfulness", "--out", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert set(rows) == {"forget_probability", "forget_rouge_l", "forget_truth_ratio"}
    assert {row["faithfulness"] for row in rows.values()} == {1.0}
    assert not any("interval" in row for row in rows.values())  # one model of each kind says nothing of others


def test_every_metric_of_forgetting_has_a_direction_and_what_is_kept_has_none():
    said = {name: knowing_is(name) for name in METRICS}
    assert {name for name in METRICS if name.startswith("retain_") and said[name]} == set()
    assert said["forget_quality"] == said["forget_perplexity"] == said["knowundo_unlearn_success"] == "lower"
    assert said["muse_privleak_open_unlearning"] == "lower"
    assert said["muse_min_k_auc"] == said["probe_auc"] == said["canary_exposure"] == said["forget_kl"] == "higher"
    assert knowing_is("choice_accuracy_wmdp") == "higher"
    assert said["forget_repetition"] is said["relearning_robustness"] is said["paraphrase_return"] is None
    assert said["model_utility"] is said["tug_of_war_kl"] is None
    with pytest.raises(ValueError, match="one of the two pools is empty"):
        rank([], [{"forget_nll": 1.0}])
