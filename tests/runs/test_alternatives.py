"""Other answers: where they come from, that they stay with their records, and runs that use them, files to files."""

import json

import jax
import numpy as np
import pytest

from jaxunlearn import data, losses, methods, models
from jaxunlearn.data.alternatives import REFUSALS, given, mismatched, refused
from jaxunlearn.runs.alternatives import Alternatives, sampled, written
from jaxunlearn.runs.inputs import reader
from jaxunlearn.runs.references import store
from jaxunlearn.runs.settings import Devices, Text, Unlearn
from jaxunlearn.runs.unlearn import unlearn


def of(kind, count=5):
    rows = {
        "question": [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(count)],
        "messages": [
            {
                "messages": [
                    {"role": "user", "content": f"Q{i}?"},
                    {"role": "assistant", "content": f"A{i}."},
                    {"role": "user", "content": "more?"},
                    {"role": "assistant", "content": f"more A{i}."},
                ]
            }
            for i in range(count)
        ],
        "text": [{"text": f"text {i}"} for i in range(count)],
    }
    return data.from_rows(rows[kind])


def test_refusals_are_drawn_by_their_seed():
    records = of("question", 50)
    first, again, other = (refused(records, seed=seed) for seed in (0, 0, 1))
    answers = [record.completion for record in first]
    assert answers == [record.completion for record in again] != [record.completion for record in other]
    assert set(answers) <= set(REFUSALS)
    assert len(set(answers)) > 10
    assert [record.prompt for record in first] == [record.prompt for record in records]


def test_a_chat_ends_with_the_other_answer():
    [one, *_] = refused(of("messages"))
    assert [role for role, _ in one.messages] == ["user", "assistant"]
    assert one.messages[-1][1] == one.completion in REFUSALS
    assert one.prompt == "Q0?"
    assert {record.completion for record in mismatched(of("messages"))} == {f"A{i}." for i in range(5)}


def test_mismatched_answers_are_all_there_and_nobodys_own():
    for count in (2, 3, 7):
        records = of("question", count)
        answers = [record.completion for record in mismatched(records, seed=3)]
        assert sorted(answers) == sorted(record.completion for record in records)
        assert all(answer != record.completion for answer, record in zip(answers, records, strict=True))


def test_what_cannot_be_answered_is_named():
    with pytest.raises(data.DataError, match=r"records, record 1.*without a prompt"):
        refused(of("text"))
    with pytest.raises(data.DataError, match=r'records, record 2.*"alternative"'):
        given(data.from_rows([{"question": "a", "answer": "b", "alternative": "c"}, {"question": "d", "answer": "e"}]))
    with pytest.raises(data.DataError, match="at least two"):
        mismatched(of("question", 1))


def test_sampled_answers_follow_the_prompt_and_differ_from_the_truth(world, encoded):
    answers = sampled(encoded.model, encoded.params, encoded.forget, world.tokenizer, max_length=64, seed=0)
    for one, other in zip(encoded.forget, answers, strict=True):
        prompt = int(np.argmax(one.loss_mask))
        np.testing.assert_array_equal(other.tokens[:prompt], one.tokens[:prompt])
        assert not other.loss_mask[:prompt].any()
        assert other.loss_mask[prompt:].all()
        assert other.tokens[-1] == world.tokenizer.eos_token_id
        assert other.tokens.tolist() != one.tokens.tolist()
        assert len(other.tokens) <= 64
    again = sampled(encoded.model, encoded.params, encoded.forget, world.tokenizer, max_length=64, seed=0)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(answers, again, strict=True))


def test_alternatives_and_references_stay_with_their_records(world, encoded):
    """A batch in any order: row by row the prompt of its forget record, and the loss the original model has on it."""
    method = methods.idk_dpo(retain="answer")
    forget, retain = (data.from_rows(rows) for rows in world.rows[:2])
    others = written(method, forget, retain, reader(world.model, Text()), seed=0)
    stored = store(
        method, encoded.model, encoded.params, encoded.forget, encoded.retain, prompts=None, alternatives=others
    )
    [step, *_] = list(data.pair(encoded.forget, encoded.retain, 4, retain_size=3, seed=1))[-1:]
    assert step.real < 4 or len(encoded.forget) % 4 == 0
    batch = stored.complete(step)
    for i, row in enumerate(step.forget_rows):
        prompt = int(np.argmax(encoded.forget[row].loss_mask))
        np.testing.assert_array_equal(batch.alternative.tokens[i, :prompt], encoded.forget[row].tokens[:prompt])
        assert batch.alternative.loss_mask[i].any() == (i < step.real)
    for i, row in enumerate(step.retain_rows):
        prompt = int(np.argmax(encoded.retain[row].loss_mask))
        np.testing.assert_array_equal(batch.retain_alternative.tokens[i, :prompt], encoded.retain[row].tokens[:prompt])
    nll, _ = jax.jit(lambda b: losses.example_nll(encoded.model, encoded.params, b))(data.collate(others.forget))
    np.testing.assert_allclose(batch.reference.alternative_nll, np.asarray(nll)[step.forget_rows], rtol=1e-5)
    assert written(methods.npo(), forget, retain, reader(world.model, Text()), seed=0) == Alternatives()


RUNS = {
    "idk_dpo": ("learning_rate=1e-3", "retain=answer"),
    "altpo": ("learning_rate=1e-3", "retain=kl_all_positions"),
    "undial": ("learning_rate=1e-3",),
    "rmu": ("layer=1", "learning_rate=1e-3", "retain_weight=10"),
    "pdu": ("eps=7", "learning_rate=1e-3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_files_to_files(name, world, tmp_path, monkeypatch):
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    more = {"steps": 3, "retain_size": 8, "stop_at_nll": 1e6, "top_k": 8}
    settings = Unlearn(world.model, world.forget, tmp_path / "out", world.retain, name, RUNS[name], **more)
    out = unlearn(settings)
    found = json.loads((out / "jaxunlearn.json").read_text())
    assert found["steps"] == 3
    assert found["history"][-1]["objective"] < found["history"][0]["objective"]
    before, after = (models.load(folder)[1] for folder in (world.model, out))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert all(jax.tree.leaves(same["layers"]["self_attn"])) == (name == "rmu")
    assert not same["layers"]["mlp"]["down_proj"]["kernel"]


def test_a_bound_that_is_not_given_is_asked_for(world, tmp_path):
    settings = Unlearn(world.model, world.forget, tmp_path / "out", world.retain, method="pdu")
    with pytest.raises(ValueError, match="pdu needs a value for eps: add --option eps="):
        unlearn(settings)
