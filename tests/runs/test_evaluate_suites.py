"""`jaxunlearn evaluate --suite` and `compare`, files to files, on a tiny model and on published logs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn import models
from jaxunlearn.cli import main
from jaxunlearn.evals import METRICS
from jaxunlearn.runs.settings import Devices

LOGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tofu-logs"


@pytest.fixture(autouse=True, scope="module")
def _one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        yield


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """The world's people in the layouts of TOFU and of multiple choice."""
    folder, rows = tmp_path_factory.mktemp("published"), world.rows

    def perturbed(part):
        wrong = [row["answer"] for row in reversed(part)]
        return [
            row | {"paraphrased_answer": row["answer"], "perturbed_answer": [other, row["question"]]}
            for row, other in zip(part, wrong, strict=True)
        ]

    for name, part in {
        "forget10_perturbed": rows.forget,
        "retain_perturbed": rows.retain,
        "real_authors_perturbed": rows.retain[:2],
        "world_facts_perturbed": rows.retain[2:4],
        "holdout10": rows.holdout,
    }.items():
        write(folder / "tofu" / f"{name}.json", perturbed(part))
    asked = [{"question": row["question"], "choices": [row["answer"], "no", "yes"], "answer": 0} for row in rows.forget]
    write(folder / "choice" / "asked.json", asked)
    return folder


@pytest.fixture(scope="module")
def result(world, folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "all.json"
    argv = ["evaluate", "--model", world.model, "--reference-model", world.model, "--suite", "all", "--out", str(out)]
    argv += ["--more-model", world.model]
    argv += ["--data", str(folders / "tofu"), "--data", str(folders / "choice"), "--new-tokens", "4", "--limit", "3"]
    assert main(argv) == 0
    return out


def test_all_suites_that_the_data_allow(result):
    found = json.loads(result.read_text())
    assert found["suite"] == "all"
    assert list(found["results"]) == ["after", "base", "retrained"]
    assert found["results"]["base"] == found["results"]["after"]
    after = found["results"]["after"]
    assert {"model_utility", "forget_el_10", "choice_accuracy", "forget_zlib_auc"} <= set(after) <= set(METRICS)
    assert not {"muse_verbmem_forget", "knowundo_unlearn_success"} & set(after)
    assert after["forget_probability"]["n"] == 3
    assert after["forget_quality"]["agg_value"] == pytest.approx(1.0)
    assert after["tug_of_war_kl"]["agg_value"] == pytest.approx(1.0, abs=1e-4)
    skipped = {name: m["skipped"] for name, m in after.items() if "skipped" in m}
    assert set(skipped) <= {
        "forget_k_extractable",
        "forget_el_10",
        "forget_conflict_formal",
        "forget_conflict_informal",
    }
    assert (
        skipped["forget_conflict_formal"] == "some statements, worded at length, pass the model's context of 64 tokens"
    )


def test_accuracy_to_lose_and_accuracy_to_keep_stand_in_one_file(world, folders, tmp_path, capsys):
    for name, part in {"wmdp": world.rows.forget, "mmlu": world.rows.retain}.items():
        asked = [{"question": row["question"], "choices": [row["answer"], "no"], "answer": 0} for row in part]
        write(tmp_path / name / "test.json", asked)
    out = tmp_path / "out.json"
    argv = ["evaluate", "--model", world.model, "--suite", "choice", "--reference-model", world.model]
    argv += ["--data", str(tmp_path / "wmdp"), "--data", str(tmp_path / "mmlu"), "--out", str(out)]
    assert main(argv) == 0
    assert "Multiple choice, accuracy: mmlu" in capsys.readouterr().out
    found = json.loads(out.read_text())
    after = found["results"]["after"]
    assert list(after) == [
        "choice_accuracy_wmdp", "choice_probability_wmdp", "choice_accuracy_mmlu", "choice_probability_mmlu"
    ]  # fmt: skip
    assert after["choice_accuracy_wmdp"]["n"] == len(world.rows.forget)
    assert after["choice_accuracy_mmlu"]["n"] == len(world.rows.retain)
    assert found["data"] == [str(tmp_path / "wmdp"), str(tmp_path / "mmlu")]
    assert main(["compare", str(out), str(out)]) == 0
    assert "Multiple choice, accuracy: wmdp" in capsys.readouterr().out


def test_attacks_and_memorisation_on_a_fold_of_muse(world, tmp_path):
    """Nothing is written: the tiny model's context has no room for what VerbMem asks for."""
    said = lambda part: [f"{row['question']} {row['answer']}" for row in part]
    asked = [{"question": "Who?", "answer": "Nobody."}]
    parts = {"forget": world.rows.forget, "retain": world.rows.retain, "holdout": world.rows.holdout}
    for name, part in parts.items():
        write(tmp_path / "muse" / "privleak" / f"{name}.json", said(part))
    write(tmp_path / "muse" / "verbmem" / "forget.json", [{"prompt": "He", "gt": "was born"}])
    for name in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
        write(tmp_path / "muse" / "knowmem" / f"{name}.json", asked)
    write(tmp_path / "muse" / "scal" / "forget_1.json", said(world.rows.retain))
    found = {}
    for fold in ("", "scal/1"):
        out = tmp_path / f"out{fold[-1:]}.json"
        argv = ["evaluate", "--model", world.model, "--suite", "privacy", "--data", str(tmp_path / "muse")]
        assert main([*argv, "--out", str(out), *(["--fold", fold] if fold else [])]) == 0
        found[fold] = json.loads(out.read_text())["results"]["after"]["forget_loss_auc"]
    assert found[""]["n"] == len(world.rows.forget)
    assert found["scal/1"]["n"] == len(world.rows.retain)
    assert found[""]["holdout_by_index"] == found["scal/1"]["holdout_by_index"]


def test_ours_goes_to_open_unlearnings_form_and_back(result, tmp_path, capsys):
    theirs = tmp_path / "theirs.json"
    argv = ["compare", str(result), str(result), "--open-unlearning", str(theirs), "--out", str(tmp_path / "a.json")]
    assert main(argv) == 0
    found = json.loads(theirs.read_text())
    ours = json.loads(result.read_text())["results"]["after"]
    rows = found["forget_truth_ratio"]["value_by_index"]
    assert rows["1"]["score"] == pytest.approx(math.exp(-ours["forget_truth_ratio"]["log_ratio_by_index"]["1"]))
    assert found["forget_Q_A_Prob"]["agg_value"] == ours["forget_probability"]["agg_value"]
    assert found["retain_Q_A_ROUGE"]["value_by_index"]["0"].keys() == {"rougeL_recall"}
    attack, rows = found["mia_min_k"], ours["forget_min_k_auc"]
    assert attack["auc"] == rows["agg_value"]
    assert attack["holdout"]["value_by_index"]["0"]["score"] == -rows["holdout_by_index"]["0"]  # lower says member
    assert main(["compare", str(theirs), str(result), "--out", str(tmp_path / "b.json")]) == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert second["kinds"] == ["open_unlearning", "jaxunlearn"]
    assert first["forget_quality"] == second["forget_quality"]
    assert len(first["metrics"]["forget_nll"]["interval"]) == 2  # weighed by tokens, which the other form does not keep
    for name, row in first["metrics"].items():
        assert second["metrics"][name]["run"] == pytest.approx(row["run"]), name
        if name.endswith(("_nll", "_kl", "_variation")):
            continue
        assert second["metrics"][name].get("interval") == pytest.approx(row.get("interval")), name
    capsys.readouterr()


def test_the_published_logs_give_the_golden_numbers(tmp_path, capsys):
    if not LOGS.is_dir():
        pytest.skip(f"needs TOFU's published logs, not found at {LOGS}")
    out = tmp_path / "golden.json"
    files = [str(LOGS / f"llama2-7b_{name}.json") for name in ("full", "retain90")]
    assert main(["compare", *files, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for golden in ("KS 0.396667", "p 1.834066e-21", "over 300 and 300", "0.622684 (rounded", "0.613746 (rounded"):
        assert golden in shown
    assert "0.622677 (not rounded)" in shown
    assert "0.613745 (not rounded)" in shown
    found = json.loads(out.read_text())
    assert found["kinds"] == ["tofu", "tofu"]
    quality = found["forget_quality"]
    assert quality["ks_statistic"] == pytest.approx(0.396667, abs=5e-7)
    assert quality["p_value"] == pytest.approx(1.834066e-21, rel=1e-6)
    row = found["metrics"]["forget_truth_ratio"]
    assert (round(row["run"], 3), round(row["reference"], 3)) == (0.516, 0.674)
    low, high = row["interval"]
    assert low < row["difference"] < high < 0  # the same questions: their difference is surely not 0
    assert main(["compare", *files, "--limit", "100"]) == 0
    assert "over 100 and 100 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is no result file"),
        ('{"a": 1}', "is no result file"),
        ('{"eval_log.json": {"avg_gt_loss": {}}}', "eval_log.json has no average_perturb_loss, avg_paraphrased_loss"),
        ('{"results": {"one": {}, "two": {}}}', "holds one, two, and no 'after'"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    assert main(["compare", str(path), str(path)]) == 2
    assert message in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.json"), str(path)]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to evaluate on: give --forget FILE, or --suite NAME"),
        (["--data", "x"], "--data needs --suite NAME"),
        (["--suite", "tofu"], "--suite tofu found no data in what was given"),
        (["--suite", "muse", "--data", "TOFU"], "is laid out like tofu, not like muse"),
        (["--suite", "all", "--data", "EMPTY"], "no folder in a published layout"),
        (["--suite", "tofu", "--data", "TOFU", "--split", "forget05"], "lacks 1 of 4 files: forget05_perturbed"),
        (["--suite", "all", "--data", "TOFU", "--data", "TOFU"], "are both laid out like tofu. Give one"),
        (
            ["--suite", "choice", "--data", "CHOICE", "--more-model", "a/after"],
            "a column called 'after' exists already",
        ),
        (["--suite", "choice", "--data", "CHOICE", "--limit", "0"], "--limit 0: give a number of at least 1"),
        (
            ["--suite", "choice", "--data", "CHOICE", "--data", "CHOICE"],
            "is given twice: nothing tells it from another",
        ),
        (["--suite", "tofu", "--data", "TOFU", "--fold", "scal/1"], "--fold scal/1 is one of MUSE's forget sets: give"),
        (["--suite", "all", "--data", "TOFU", "--fold", "scal/1"], "--fold scal/1 is one of MUSE's forget sets: give"),
        (["--suite", "privacy", "--forget", "x", "--fold", "sust/2"], "both name the forget set: give one"),
    ],
)
def test_bad_input_is_told_before_any_weight_is_loaded(world, folders, tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    places = {"TOFU": folders / "tofu", "CHOICE": folders / "choice", "EMPTY": tmp_path}
    argv = [str(places.get(part, part)) for part in argv]
    assert main(["evaluate", "--model", world.model, *argv]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_separated_samples_of_400_are_compared_in_float64(tmp_path, capsys):
    sides = []
    for name, shift in (("low", 0.0), ("high", 1.0)):
        ratio = {str(i): shift + i / 1000 for i in range(400)}
        column = {"agg_value": 0.5, "value_by_index": {}, "log_ratio_by_index": ratio}
        sides.append(tmp_path / f"{name}.json")
        write(sides[-1], {"forget_truth_ratio": column})
    assert main(["compare", *map(str, sides), "--out", str(tmp_path / "out.json")]) == 0
    quality = json.loads((tmp_path / "out.json").read_text())["forget_quality"]
    assert quality["p_value"] == pytest.approx(2 / math.comb(800, 400), rel=1e-9)
    assert quality["log10_p"] == pytest.approx(np.log10(1.0636) - 239, abs=1e-4)
    assert "p 1.063590e-239" in capsys.readouterr().out
    # The options beside it run it again, to the byte.
    assert main(["compare", "--config", str(tmp_path / "out.yaml"), "--out", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "out.json").read_bytes()
    assert main(["compare", *map(str, sides), "--open-unlearning", str(tmp_path / "theirs.json")]) == 0
    assert f"{tmp_path / 'low.json'}" in (tmp_path / "theirs.yaml").read_text()
    assert "--open-unlearning NEW-FILE" in (tmp_path / "theirs.yaml").read_text()
