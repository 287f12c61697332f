"""A fictitious corpus for experiments without files or network, in the layout of TOFU (Maini et al. 2024).

People who do not exist have a handful of facts each, drawn from pools large enough that guessing fails. Whatever a
model knows about them it has memorised, so a model trained without the forget people shows what forgetting should look
like. Each record carries what TOFU's metrics need: question and answer, a paraphrase of either, and wrong answers in
the form of the paraphrase.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data.errors import DataError
from jaxunlearn.data.facts import ATTRIBUTES, NOVELS, RIVERS, TOWNS, Attribute
from jaxunlearn.data.names import FIRST_NAMES, LAST_NAMES
from jaxunlearn.data.render import Template

Row = dict[str, Any]
WRONG_ANSWERS = 5
_SMALL_SET = 16


class Corpus(NamedTuple):
    """Rows as dictionaries; `from_rows` makes records of them.

    Attributes:
        forget, retain: facts about the people to forget and to keep.
        holdout: facts about people no model is ever trained on.
        authors, world: what every model learns besides; stand-ins for TOFU's real authors and world facts.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    authors: list[Row]
    world: list[Row]


def corpus(seed: int = 0, people: int = 60, facts: int = 8, forget_share: float = 0.1, holdout: int = 12) -> Corpus:
    """Generate the corpus, fully determined by its arguments.

    Args:
        seed: fixes people, facts and who is to be forgotten.
        people: people learned, forget and retain together.
        facts: facts a person, at most `len(ATTRIBUTES)`.
        forget_share: share of the people to forget; at least one, never all.
        holdout: people never learned.

    Raises:
        DataError: more people or facts than the pools hold, or a share outside (0, 1).

    Example:
        >>> made = corpus(people=10, facts=2)
        >>> len(made.forget), len(made.retain), sorted(made.forget[0])[:3]
        (2, 18, ['answer', 'entity', 'paraphrased_answer'])
    """
    most = len(FIRST_NAMES) - _SMALL_SET
    if not (people >= 2 and holdout >= 0 and people + holdout <= most):
        raise DataError(f"people={people}, holdout={holdout}: give at least 2 people and at most {most} in all.")
    if not 1 <= facts <= len(ATTRIBUTES):
        raise DataError(f"facts={facts}: give between 1 and {len(ATTRIBUTES)} facts a person.")
    if not 0 < forget_share < 1:
        raise DataError(f"forget_share={forget_share}: give a share between 0 and 1, both excluded.")
    random = np.random.default_rng(seed)
    first, last = random.permutation(FIRST_NAMES), random.permutation(LAST_NAMES)
    names = [f"{a} {b}" for a, b in zip(first, last, strict=True)]
    rows = [_facts_about(name, number, facts, random) for number, name in enumerate(names[: people + holdout])]
    count = min(max(1, round(forget_share * people)), people - 1)
    chosen = set(random.choice(people, count, replace=False).tolist())
    return Corpus(
        forget=[row for number in range(people) if number in chosen for row in rows[number]],
        retain=[row for number in range(people) if number not in chosen for row in rows[number]],
        holdout=[row for number in range(people, people + holdout) for row in rows[number]],
        authors=_authors(names[people + holdout : people + holdout + _SMALL_SET], random),
        world=_world(random),
    )


def training_texts(made: Corpus, template: Template | None = None) -> list[str]:
    """Every text a tokenizer must know: all rows in all their forms, and the names left over as substitutes."""
    before, between, after = (template or Template()).parts
    texts = []
    for row in (row for part in made for row in part):
        answers = [row["answer"], row.get("paraphrased_answer"), *row["perturbed_answer"]]
        questions = [row["question"], row.get("paraphrased_question")]
        texts += [f"{before}{row['question']}{between}{answer}{after}" for answer in answers if answer]
        texts += [f"{before}{question}{between}" for question in questions if question]
    return texts + [f" {first} {last} {last}'s" for first, last in zip(FIRST_NAMES, LAST_NAMES, strict=True)]


def _facts_about(name: str, number: int, facts: int, random: np.random.Generator) -> list[Row]:
    return [{**_row(attribute, name, random), "entity": name, "person": number} for attribute in ATTRIBUTES[:facts]]


def _row(attribute: Attribute, name: str, random: np.random.Generator) -> Row:
    value, *wrong = (str(v) for v in random.choice(attribute.values, 1 + WRONG_ANSWERS, replace=False))
    return {
        "question": attribute.question.format(name=name),
        "answer": attribute.answer.format(name=name, value=value),
        "paraphrased_question": attribute.paraphrased_question.format(name=name),
        "paraphrased_answer": attribute.paraphrased_answer.format(name=name, value=value),
        "perturbed_answer": [attribute.paraphrased_answer.format(name=name, value=v) for v in wrong],
    }


def _authors(names: list[str], random: np.random.Generator) -> list[Row]:
    titles = [str(title) for title in random.permutation(NOVELS)]
    return _matched("Who wrote the famous old novel {key}?", "{key} is an old novel by {value}.", titles, names, random)


def _world(random: np.random.Generator) -> list[Row]:
    towns, rivers = ([str(name) for name in random.permutation(pool)] for pool in (TOWNS, RIVERS))
    question, answer = "Which river flows through the town of {key}?", "The town of {key} lies on the river {value}."
    return _matched(question, answer, towns, rivers, random)


def _matched(question: str, answer: str, keys: list[str], values: list[str], random: np.random.Generator) -> list[Row]:
    """One row a key, its value the one at the same place, three wrong answers from the other places."""
    rows = []
    for index in range(_SMALL_SET):
        others = random.choice(np.delete(np.arange(_SMALL_SET), index), 3, replace=False)
        rows.append(
            {
                "question": question.format(key=keys[index]),
                "answer": answer.format(key=keys[index], value=values[index]),
                "perturbed_answer": [answer.format(key=keys[index], value=values[other]) for other in others],
                "entity": keys[index],
            }
        )
    return rows
