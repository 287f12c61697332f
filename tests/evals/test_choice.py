"""Multiple choice: every number by another route, and several sources side by side."""

import json

import numpy as np
import pytest

from jaxunlearn.data import Template
from jaxunlearn.evals import Run, Sources, build, run_suites
from jaxunlearn.evals.catalogue import about, family
from jaxunlearn.evals.multiple_choice import choices
from jaxunlearn.evals.stop import holds, parse_rule
from jaxunlearn.evals.suites import Choice
from jaxunlearn.reports.layout import lay_out

from .letters import MODEL, QUESTIONS, TOKENIZER, nll_of, questions, table

LENGTH = 400
PLAIN = Template("{prompt} {completion}")
RUN = Run(MODEL, table(0), TOKENIZER)


@pytest.fixture(scope="module")
def found():
    return run_suites([Choice(choices(QUESTIONS, TOKENIZER, max_length=LENGTH))], RUN)


def test_choices_by_scoring_each_alone(found):
    picked = []
    for row in QUESTIONS:
        means = []
        for text in row["choices"]:
            ids = TOKENIZER(f"Question: {row['question']}\nAnswer: {text}")["input_ids"][0]
            start = len(ids) - len(text) + 1
            means.append(nll_of([0, *ids], np.arange(start, len(ids) + 1)).mean())
        picked.append(int(np.argmin(means)))
    right = [float(p == row["answer"]) for p, row in zip(picked, QUESTIONS, strict=True)]
    assert list(found["choice_accuracy"]["value_by_index"].values()) == right
    assert found["choice_accuracy"]["by_task"] == {
        "art": {"mean": pytest.approx(np.mean(right[2:])), "n": 3},
        "law": {"mean": pytest.approx(np.mean(right[:2])), "n": 2},
    }


def test_letters_are_scored_after_a_question_that_lists_the_choices():
    asked = choices(QUESTIONS[:1], TOKENIZER_WITH_CAPITALS, style="letters", max_length=LENGTH)
    texts = [TOKENIZER_WITH_CAPITALS.decode(one.tokens) for one in asked.encoded]
    assert [text[-1] for text in texts] == list("ABCD")
    assert all(f"B. {QUESTIONS[0]['choices'][1]}" in text for text in texts)
    assert [int(one.loss_mask.sum()) for one in asked.encoded] == [1, 1, 1, 1]


def test_long_questions_lose_their_beginning_and_keep_every_choice():
    asked = [QUESTIONS[0], {**QUESTIONS[1], "question": "abc " * 20}]
    whole, limit = choices(asked, TOKENIZER, max_length=LENGTH, template=PLAIN), 50
    with pytest.raises(ValueError, match="4 of 8 records cannot be encoded"):
        choices(asked, TOKENIZER, max_length=limit, template=PLAIN)
    found = choices(asked, TOKENIZER, max_length=limit, template=PLAIN, truncate=True)
    assert found.cut == 1
    assert [len(one.tokens) for one in found.encoded[:4]] == [len(one.tokens) for one in whole.encoded[:4]]
    assert max(len(one.tokens) for one in found.encoded[4:]) == limit
    [gone] = {len(a.tokens) - len(b.tokens) for a, b in zip(whole.encoded[4:], found.encoded[4:], strict=True)}
    for a, b in zip(whole.encoded[4:], found.encoded[4:], strict=True):
        np.testing.assert_array_equal(b.tokens, np.r_[a.tokens[:1], a.tokens[1 + gone :]])
        assert TOKENIZER.decode(b.tokens[b.loss_mask == 1]) == TOKENIZER.decode(a.tokens[a.loss_mask == 1])
    with pytest.raises(ValueError, match="question 1: a choice does not fit"):
        choices(asked, TOKENIZER, max_length=5, template=PLAIN, truncate=True)


class Capitals:
    """One token a character of any text."""

    bos_token_id, eos_token_id, is_fast = 0, 1, True

    def __call__(self, texts, **_):
        return {
            "input_ids": [[ord(c) + 2 for c in text] for text in texts],
            "offset_mapping": [[(i, i + 1) for i in range(len(text))] for text in texts],
        }

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i - 2) for i in ids if i > 1)


TOKENIZER_WITH_CAPITALS = Capitals()


# One task a file, as WMDP has it; several, as MMLU has them; and the same questions under another name.
PARTS = {
    "wmdp/bio.json": questions(1, ("bio",) * 3),
    "wmdp/cyber.json": questions(2, ("cyber",) * 2),
    "mmlu/test.json": questions(3, ("law", "art", "law", "art")),
    "other/test.json": QUESTIONS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("asked")
    for name, rows in PARTS.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(json.dumps(rows), encoding="utf-8")
    return home


def built(folder, *names, suite="choice", **more):
    return build(suite, Sources(data=[str(folder / name) for name in names], **more), TOKENIZER, max_length=LENGTH)


def test_several_sources_have_the_numbers_that_each_has_alone(folder):
    suites = built(folder, "wmdp", "mmlu", suite="all")
    assert [suite.name for suite in suites] == ["choice_wmdp", "choice_mmlu"]
    result = run_suites(suites, RUN)
    assert list(result) == [
        "choice_accuracy_wmdp", "choice_probability_wmdp", "choice_accuracy_mmlu", "choice_probability_mmlu"
    ]  # fmt: skip
    for name in ("wmdp", "mmlu"):
        [one] = built(folder, name)
        assert one.name == "choice"
        alone = run_suites([one], RUN)
        assert list(alone) == ["choice_accuracy", "choice_probability"]
        for metric, measure in alone.items():
            assert result[f"{metric}_{name}"] == measure, metric
    assert result["choice_accuracy_wmdp"]["n"] == 5
    assert set(result["choice_accuracy_wmdp"]["by_task"]) == {"bio", "cyber"}
    assert set(result["choice_accuracy_mmlu"]["by_task"]) == {"law", "art"}
    json.dumps(result, allow_nan=False)


def test_files_of_one_name_are_told_apart_by_their_folders_and_one_file_twice_is_refused(folder):
    suites = built(folder, "mmlu/test.json", "other/test.json", "wmdp/bio.json", limit=2)
    assert [suite.source for suite in suites] == ["mmlu_test", "other_test", "bio"]
    assert [len(suite.choices.counts) for suite in suites] == [2, 2, 2]
    with pytest.raises(ValueError, match=r"mmlu/test.json is given twice: nothing tells it from another"):
        built(folder, "mmlu/test.json", "mmlu/test.json")


def test_tables_and_rules_know_the_metrics_of_a_source(folder):
    result = run_suites(built(folder, "wmdp", "mmlu"), RUN)
    labels = [row.label for row in lay_out({"after": result}).rows]
    assert labels == [
        "Multiple choice, accuracy: wmdp", "Multiple choice, accuracy: mmlu",
        "Multiple choice, probability: wmdp", "Multiple choice, probability: mmlu",
    ]  # fmt: skip
    assert lay_out({"after": result}, metrics=["choice_accuracy_mmlu"]).rows[0].label == labels[1]
    assert about("choice_accuracy_mmlu")._replace(label="") == about("choice_accuracy")._replace(label="")
    assert [family(name) for name in ("choice_accuracy_", "forget_nll_mmlu", "choice")] == [None] * 3
    value = result["choice_accuracy_mmlu"]["agg_value"]
    assert holds(parse_rule(f"choice_accuracy_mmlu>={value},choice_accuracy_wmdp<=1"), result)
    with pytest.raises(ValueError, match="no metric is called 'forget_nll_mmlu'"):
        parse_rule("forget_nll_mmlu<=1")
