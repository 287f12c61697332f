"""`jaxunlearn attack` and `jaxunlearn canary` from files to files."""

import json
import math
import shutil
import signal

import pytest

from jaxunlearn.cli import main
from jaxunlearn.data import from_rows
from jaxunlearn.data.canary_key import read_key
from jaxunlearn.evals.attacks.families import FAMILIES
from jaxunlearn.runs import attack as attacks
from jaxunlearn.runs.settings import Devices

SECRET = "The safe opens with {digits:1}{choice:x|y}"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """As on a machine with one device: eight virtual ones compile for long."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)


@pytest.fixture(scope="module")
def key(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    argv = ["canary", "insert", "--data", world.forget, "--data", world.retain, "--template", SECRET]
    argv += ["--out", folder / "train.jsonl", "--key", folder / "key.jsonl", "--count", 2, "--copies", 1, "--copies", 3]
    assert main(list(map(str, argv))) == 0
    return folder / "key.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(argv, capsys):
    assert main([str(part) for part in argv]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return shown.err


def test_canaries_stand_among_the_records_which_keep_their_order(world, key):
    canaries, rows = read_key(key), rows_of(key.parent / "train.jsonl")
    assert [one.copies for one in canaries] == [1, 1, 3, 3]
    assert len({one.text for one in canaries}) == 4
    own = {one.text: one.copies for one in canaries}
    texts = [row.get("text") for row in rows]
    assert {text: texts.count(text) for text in own} == own
    assert [row for row in rows if row.get("text") not in own] == world.rows.forget + world.rows.retain
    assert any(row.get("text") in own for row in rows[: len(rows) // 2])
    # The key is a file of records as well, to be forgotten.
    assert [record.completion for record in from_rows(rows_of(key))] == [one.text for one in canaries]


def test_a_model_that_never_saw_the_canaries_exposes_as_much_as_chance(world, key, tmp_path, capsys):
    out = tmp_path / "exposure.json"
    assert main(["canary", "score", "--model", world.model, "--key", str(key), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    measure = json.loads(out.read_text())["canary_exposure"]
    assert (measure["n"], measure["unit"]) == (4, "bits")
    for row, bits in zip(measure["canaries"], measure["value_by_index"].values(), strict=True):
        assert (row["method"], row["space"], row["template"]) == ("exact", 20, SECRET)
        assert row["bits"] == bits == pytest.approx(math.log2(20 / row["rank"]))
    assert not [one.text for one in read_key(key) if one.text in shown + out.read_text()]
    assert main(["canary", "score", "--model", world.model, "--key", str(key), "--candidates", "12",
                 "--ranks", "sampled"]) == 0  # fmt: skip
    assert "sampled, 12 others" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["canary"], ["insert", "score"]),
        (["canary", "--help"], ["insert", "score"]),
        (["canary", "insert", "--help"], ["--data", "--template", "--copies", "--key"]),
        (["canary", "score", "--help"], ["--model", "--key", "--candidates", "--ranks", "--mesh"]),
        (
            ["attack", "--help"],
            ["--model", "--forget", "--holdout", "--reference-model", "--only", "--canaries", "--features"],
        ),
    ],
)
def test_help_names_the_options(argv, flags, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert not [flag for flag in flags if flag not in shown]


def test_canary_refusals_name_what_is_wrong(world, key, tmp_path, capsys):
    insert = ["canary", "insert", "--data", world.forget, "--template", SECRET]
    new = ["--out", tmp_path / "a.jsonl", "--key", tmp_path / "b.jsonl"]
    for argv, message in (
        (["canary", "remove"], "choose insert or score"),
        ([*insert, "--out", key, "--key", tmp_path / "b.jsonl"], "nothing of yours is overwritten"),
        ([*insert, "--out", tmp_path / "a", "--key", tmp_path / "a"], "the key must be a file of its own"),
        ([*insert, *new, "--template", "no hole"], "nothing to fill in"),
        ([*insert, *new, "--copies", 0], "at least once"),
        ([*insert, *new, "--count", 50], "not more than the 150 canaries"),
        ([*insert, *new, "--messages-field", "chat"], 'no field "chat"'),
        (["canary", "score", "--model", world.model, "--key", world.forget], f"{world.forget}: 3 of 3 canaries"),
        (["canary", "score", "--model", world.model, "--key", key, "--candidates", 1], "--candidates 1"),
        (["canary", "score", "--model", world.model, "--key", key, "--candidates", 9, "--ranks", "exact"],
         "needs all 20 candidates"),
    ):  # fmt: skip
        assert message in refused(argv, capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def attacked(world, key, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack")
    holdout = folder / "holdout.jsonl"
    holdout.write_text("".join(json.dumps(row) + "\n" for row in world.rows.holdout))
    argv = ["attack", "--model", world.model, "--forget", world.forget, "--retain", world.retain]
    argv += ["--holdout", str(holdout), "--reference-model", world.model, "--canaries", str(key), "--group", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        argv += ["--classifier", "logistic", "--features", "histogram", "--general-model", world.model]
        assert main([*argv, "--out", str(folder / "found.json")]) == 0
    return json.loads((folder / "found.json").read_text())


def test_one_command_runs_every_attack_on_every_model(world, attacked):
    results = attacked["results"]
    assert list(results) == ["after", "retrained"]
    assert attacked["models"] == {"after": world.model, "retrained": world.model}
    for column, result in results.items():
        names = [name for family, rows in FAMILIES.items() for name in rows.metrics
                 if column == "after" or family != "relearning"]  # fmt: skip
        assert list(result) == names
        missing = {name: measure.get("skipped") for name, measure in result.items() if measure["agg_value"] is None}
        one_person = {"probe_auc": "a probe needs forget and holdout texts about at least two entities each"}
        # The world's answers are short, and so is its model's context.
        too_long = "some statements, worded at length, pass the model's context of 64 tokens"
        short = {
            "forget_k_extractable": "no text has 100 tokens with the first 50 as its beginning",
            "forget_conflict_formal": too_long,
            "forget_conflict_informal": too_long,
        }
        itself = {} if column == "after" else {"forget_reference_auc": "this is the reference model itself"}
        assert missing == one_person | short | itself


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_leaves_the_tests_that_are_over(number, code, world, tmp_path, monkeypatch, capsys):
    argv = ["attack", "--model", world.model, "--forget", world.forget, "--reference-model", world.model]
    argv += ["--only", "extraction", "--only", "lens", "--out"]
    assert main([*argv, str(tmp_path / "whole.json")]) == 0
    real, calls = attacks.stress, []

    def interrupted(*args, only, **options):
        calls.append(only)
        if len(calls) == 2:
            if number == signal.SIGINT:  # what Python makes of it; shells have jobs in the background ignore it
                raise KeyboardInterrupt
            signal.raise_signal(number)
        return real(*args, only=only, **options)

    monkeypatch.setattr(attacks, "stress", interrupted)
    out = tmp_path / "found.json"
    capsys.readouterr()
    handler = signal.getsignal(signal.SIGTERM)
    assert main([*argv, str(out)]) == code
    assert signal.getsignal(signal.SIGTERM) is handler
    kept = tmp_path / "found.json.partial"
    assert (
        f"interrupted; to go on: jaxunlearn attack --config {kept}/jaxunlearn.yaml --resume" in capsys.readouterr().err
    )
    assert not out.exists()
    assert main([*argv, str(out)]) == 2
    assert "holds an unfinished run" in capsys.readouterr().err
    assert main(["attack", "--config", str(kept / "jaxunlearn.yaml"), "--resume"]) == 0
    assert [only for (only,) in calls] == [
        "extraction",
        "lens",
        "lens",
        "extraction",
        "lens",
    ]  # the first is not run again
    assert not kept.exists()
    whole, found = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "found.json"))
    assert found["results"] == whole["results"]
    assert main([*argv, str(out), "--resume"]) == 0
    assert "is complete already" in capsys.readouterr().out


def test_a_model_beside_itself_gives_what_it_must(attacked):
    after = attacked["results"]["after"]
    # The same model relearns as fast as itself, and no score of the reference attack differs.
    assert after["relearning_robustness"]["agg_value"] == 1.0
    assert after["relearning_robustness"]["curve"][0] == 1.0
    assert after["forget_reference_auc"]["agg_value"] == 0.5
    assert 0.9 < after["quantisation_int8_robustness"]["agg_value"] <= 1.0
    assert after["quantisation_int4_robustness"]["group"] == 8
    assert after["forget_document_auc"]["n"] == 3
    assert set(after["forget_document_auc"]["verdict_by_index"].values()) <= {"member", "undecided", "no evidence"}
    assert len(after["canary_exposure"]["canaries"]) == 4
    assert set(after["logit_lens_memorisation"]["by_layer"]) == {"1", "2"}
    # Of four prefixes some do not fit in a context of 64 tokens; the attacker takes the others.
    assert 0 < after["prefix_return"]["too_long"] < 12


def test_what_is_missing_is_said_with_its_reason(world, tmp_path, capsys):
    out = tmp_path / "few.json"
    argv = ["attack", "--model", world.model, "--forget", world.forget, "--out", str(out)]
    runs_alone = ("extraction", "quantisation", "lens", "paraphrase", "prefix")
    argv += [part for name in FAMILIES if name not in runs_alone for part in ("--only", name)]
    assert main(argv) == 0
    [(column, result)] = json.loads(out.read_text())["results"].items()
    assert column == "after"
    reasons = {name: measure["skipped"] for name, measure in result.items()}
    assert reasons["forget_loss_auc"] == reasons["probe_auc"] == "no holdout set given"
    assert "documents known to be learned" in reasons["forget_document_auc"]
    assert reasons["relearning_robustness"] == "no retrained model given to compare the speed with"
    assert reasons["canary_exposure"] == "no key of canaries given"
    shown = " ".join(capsys.readouterr().out.split())
    assert "no holdout set given" in shown
    assert "Nothing came back" in shown


def test_attack_refusals_come_before_weights_are_read(world, tmp_path, capsys):
    shutil.copytree(world.model, tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    existing = tmp_path / "mine.json"
    existing.write_text("{}")
    argv = ["attack", "--model", tmp_path / "weightless", "--forget", world.forget]
    for more, message in (
        (["--out", existing], "nothing of yours is overwritten"),
        (["--only", "quantization"], "did you mean quantisation?"),
        (["--only", "everything"], "choose among membership"),
        (["--relearn-share", 0], "--relearn-share 0"),
        (["--relearn-rate", -1], "--relearn-rate -1"),
        (["--group", 0], "--group 0"),
        (["--general-model", world.model, "--normalisation", "none"], "--normalisation none relates none"),
        (["--canaries", world.forget], "3 of 3 canaries"),
        (["--holdout", tmp_path / "none.jsonl"], "no such file"),
        (["--max-length", 5], "but sequences hold at most 5"),
        (["--reference-model", tmp_path / "nowhere"], "nowhere"),
    ):
        assert message in refused([*argv, *more], capsys)
    assert existing.read_text() == "{}"
