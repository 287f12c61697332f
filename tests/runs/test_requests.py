"""Requests in a row, layers and adapters, files to files: the ledger tells the story, and what was not chosen stays."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxunlearn import data, models
from jaxunlearn.runs import requests, trainable
from jaxunlearn.runs.finetune import finetune
from jaxunlearn.runs.record import FILE, digest, read_record
from jaxunlearn.runs.settings import Devices, Finetune, Trainable, Unlearn
from jaxunlearn.runs.unlearn import unlearn


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def answered(world, tmp_path_factory):
    """Two requests in a row, the second one replaying the first."""
    folder = tmp_path_factory.mktemp("requests")
    half = len(world.rows.forget) // 2
    files = [
        write(folder / f"{i}.jsonl", rows)
        for i, rows in enumerate((world.rows.forget[:half], world.rows.forget[half:]))
    ]
    common = {"retain": world.retain, "method": "grad_ascent", "option": ("learning_rate=1e-3",), "steps": 2}
    common |= {"stop_at_nll": 1e9, "batch_size": 4, "retain_size": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        unlearn(Unlearn(model=world.model, forget=files[0], out=folder / "first", **common))
        second = Unlearn(
            model=folder / "first", forget=files[1], out=folder / "second", request=2, replay=True, **common
        )
        unlearn(second)
    return folder, files, second


def test_the_newest_folder_tells_the_whole_story(answered, world):
    folder, files, _ = answered
    first, second = read_record(folder / "second")["requests"]
    assert [first["number"], second["number"]] == [1, 2]
    assert [first["forget"]["path"], second["forget"]["path"]] == files
    assert first["forget"]["sha256"] == digest(files[0])
    assert first["weights_before"] == digest(world.model)
    assert first["weights_after"] == second["weights_before"] == digest(folder / "first")
    assert second["weights_after"] == digest(folder / "second") != digest(folder / "first")
    assert len(first["records"]) + len(second["records"]) == len(world.rows.forget)
    assert first["certificate"]["forget_after"] > first["certificate"]["forget_before"]
    text = (folder / "second" / FILE).read_text() + (folder / "second" / "README.md").read_text()
    assert not any(row["answer"] in text for row in world.rows.forget)


def test_a_wrong_number_is_refused(answered):
    folder, _, second = answered
    with pytest.raises(ValueError, match="answered 1 requests, so the next is --request 2"):
        unlearn(replace(second, request=3, out=folder / "third"))


def test_what_was_forgotten_may_not_come_back_as_retain(answered, world, tmp_path):
    folder, _, second = answered
    row = world.rows.forget[0]
    shouting = [row | {"answer": f"  {row['answer'].upper()} "}, *world.rows.retain]
    retain = write(tmp_path / "retain.jsonl", shouting)
    with pytest.raises(data.DataError, match=r"line 1 \(request 1\)"):
        unlearn(replace(second, retain=retain, out=folder / "third"))


def test_a_replay_needs_the_files_as_they_were(answered):
    folder, *_ = answered
    lines = json.loads((folder / "second" / FILE).read_text())["requests"]
    assert requests.replayed(lines) == [line["forget"]["path"] for line in lines]
    lines[0]["forget"]["path"] += ".gone"
    lines[1]["forget"]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"request 1: .*is not there; request 2: .*changed"):
        requests.replayed(lines)


def test_a_ledger_of_other_weights_is_refused(answered, tmp_path):
    folder, _, second = answered
    model, params = models.load(folder / "first")
    models.save(tmp_path / "changed", model, jax.tree.map(lambda x: x + 1, params))
    (tmp_path / "changed" / FILE).write_text((folder / "first" / FILE).read_text())
    with pytest.raises(ValueError, match="not those that its"):
        unlearn(replace(second, model=tmp_path / "changed", out=folder / "third"))


def test_fine_tuning_carries_the_ledger_on_and_warns_of_what_it_teaches_again(answered, world, tmp_path, capsys):
    folder, files, _ = answered
    finetune(Finetune(model=folder / "first", data=(files[0],), out=tmp_path / "tuned", epochs=1))
    assert "teaches again what was to be forgotten" in capsys.readouterr().out
    ledgers = [requests.earlier(path, digest(path)) for path in (tmp_path / "tuned", folder / "first")]
    assert ledgers[0] == ledgers[1] != []
    assert read_record(tmp_path / "tuned")["weights"] == digest(tmp_path / "tuned") != digest(folder / "first")


def test_a_fingerprint_depends_on_its_salt():
    [record] = data.from_rows([{"question": "Who?", "answer": "Ada."}])
    assert requests.fingerprint(record, "00") != requests.fingerprint(record, "01")


@pytest.mark.parametrize(
    "choice",
    [
        Trainable(train_last=1),
        Trainable(lora_rank=2, lora_targets=("q_proj",)),
        Trainable(lora_rank=1, lora_init="fila", lora_targets=("q_proj",)),
    ],
    ids=["last layer", "lora", "fila"],
)
def test_what_is_not_chosen_stays_to_the_bit(choice, world, tmp_path):
    settings = Unlearn(
        model=world.model, forget=world.forget, retain=world.retain, out=tmp_path / "out", trainable=choice,
        method="grad_ascent", option=("learning_rate=1e-3",), steps=2, batch_size=4, retain_size=4, stop_at_nll=1e9,
    )  # fmt: skip
    unlearn(settings)
    (_, before), (_, after) = models.load(world.model), models.load(tmp_path / "out")
    np.testing.assert_array_equal(before["embed_tokens"]["embedding"], after["embed_tokens"]["embedding"])
    old, new = (p["layers"]["self_attn"]["q_proj"]["kernel"] for p in (before, after))
    assert not np.array_equal(old[1], new[1])
    if choice.train_last:
        np.testing.assert_array_equal(old[0], new[0])
    up = [np.array_equal(*(p["layers"]["mlp"]["up_proj"]["kernel"][i] for p in (before, after))) for i in range(2)]
    assert up == [True, not choice.train_last]
    assert read_record(tmp_path / "out")["settings"]["trainable"]["lora_rank"] == choice.lora_rank


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Trainable(lora_rank=-1), "--lora-rank -1"),
        (Trainable(train_last=3), "has 2 layers"),
        (Trainable(train_last=1, lora_rank=2), "one of the two"),
        (Trainable(lora_init="vila"), "give --lora-rank as well"),
        (Trainable(lora_rank=2, lora_targets=("head",)), "q_proj"),
    ],
)
def test_choices_are_checked(choice, message):
    with pytest.raises(ValueError, match=message):
        trainable.check(choice, 2)
