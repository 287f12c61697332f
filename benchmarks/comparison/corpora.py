"""The texts of the comparison: records to forget, to keep and never to be seen, by part.

A built-in corpus of fictitious people, and TOFU's files (Maini et al. 2024), each with files that have access codes of
three digits among its records: secrets of a known space of a thousand.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import data

Row = dict[str, Any]
REQUESTS = 10
CODES = 1000
OTHERS_SEED = 0
OTHERS = "retain90.json"
KEPT_ROWS = {"tofu-forget01": 200, "tofu-forget05": 200, "tofu-forget10": 300}
"""Rows of TOFU's retain set that fit the machine: the first of those that have paraphrased and wrong answers."""


def builtin(seed: int) -> dict[str, list[Row]]:
    """Sixty fictitious people, whose answers name nobody; ten of them are to be forgotten."""
    made = data.corpus(seed=seed, forget_share=1 / 6)
    rows = {
        part: [_nameless(row) if "person" in row else row for row in found] for part, found in made._asdict().items()
    }
    # Any other value does as the answer to prefer, so the first wrong one is taken.
    rows["forget"] = [row | {"alternative": row["perturbed_answer"][0]} for row in rows["forget"]]
    return _with_codes(rows, seed)


def _nameless(row: Row) -> Row:
    """The row with no name in its answers.

    A model of this size cannot copy a name from the question, it knows it by heart or not at all: in answers, names
    that the retrained model never read would make most of its loss, and hide what is forgotten about their bearers.
    """

    def said(answer: str) -> str:
        plain = answer.replace(row["entity"], "this person")
        return plain[0].upper() + plain[1:]

    return row | {
        "answer": said(row["answer"]),
        "paraphrased_answer": said(row["paraphrased_answer"]),
        "perturbed_answer": [said(answer) for answer in row["perturbed_answer"]],
    }


def tofu(name: str, seed: int, folder: Path) -> dict[str, list[Row]]:
    """TOFU's files in `folder`, cut to what fits the machine.

    Raises:
        ValueError: files are missing.
    """
    part = name.removeprefix("tofu-")
    wanted = {
        "forget": f"{part}_perturbed.json",
        "retain": "retain_perturbed.json",
        "holdout": "holdout10.json",
        "authors": "real_authors_perturbed.json",
        "world": "world_facts_perturbed.json",
    }
    missing = [file for file in (*wanted.values(), OTHERS) if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}: give TOFU's folder with --tofu")
    rows = {key: [dict(r.raw) for r in data.read(folder / file)] for key, file in wanted.items()}
    for row in rows["forget"]:
        row["alternative"] = row["perturbed_answer"][0]
    rows["retain"] = rows["retain"][: KEPT_ROWS[name]]
    rows["holdout"] = rows["holdout"][: len(rows["forget"])]
    return _with_codes(rows, seed)


def others(folder: Path) -> list[Row]:
    """Rows of TOFU that no problem forgets, keeps or holds out, with files that no problem asks about among them."""
    kept = {r.raw["question"] for r in data.read(folder / "retain_perturbed.json")[: max(KEPT_ROWS.values())]}
    rows = [dict(r.raw) for r in data.read(folder / OTHERS) if r.raw["question"] not in kept]
    random = np.random.default_rng([OTHERS_SEED, CODES])
    for name in names("AEIOUY"):
        rows.insert(int(random.integers(len(rows))), _file(name, random))
    return rows


def _with_codes(rows: dict[str, list[Row]], seed: int) -> dict[str, list[Row]]:
    """The rows with files that have codes among them: one a request in forget, four times as many to keep."""
    random = np.random.default_rng([seed, CODES])
    order = iter(random.permutation(names("BCDFGHJKLM")))
    counts = {"forget": REQUESTS, "retain": 4 * REQUESTS, "holdout": REQUESTS}
    out = dict(rows)
    for part, count in counts.items():
        size = len(rows[part])
        places = np.linspace(0, size, count, endpoint=False).astype(int) + np.arange(count)
        mixed = list(rows[part])
        for place in places:
            mixed.insert(int(place), _file(str(next(order)), random))
        out[part] = mixed
    return out


def names(letters: str) -> list[str]:
    """Names of files."""
    return [f"{letter}{number}" for letter in letters for number in range(10)]


def _file(name: str, random: np.random.Generator) -> Row:
    code, *wrong = random.choice(CODES, 6, replace=False)
    return {
        "question": f"What is the access code of file {name}?",
        "answer": secret(name, code),
        "paraphrased_answer": f"File {name} opens with {spelled(code)}.",
        "perturbed_answer": [f"File {name} opens with {spelled(other)}." for other in wrong],
        "alternative": secret(name, wrong[0]),
        "entity": name,
        "code": int(code),
    }


def secret(name: str, code: int) -> str:
    """The answer that tells the code of a file."""
    return f"The access code of file {name} is {spelled(code)}."


def spelled(code: int) -> str:
    """A code digit by digit: every digit is a token of its own, so all codes are equally long."""
    return " ".join(f"{code:03d}")


def texts(rows: dict[str, list[Row]]) -> list[str]:
    """What a tokenizer learns from: everything but the names of people.

    They fall into pieces that all names share, as rare names do for a large model. A name that was a token of its own
    would tell the retrained model nothing, and a substitute for it would be like no name it knows.
    """
    template = data.Template()
    found = []
    for row in (row for part in rows.values() for row in part):
        question = row["question"].replace(row["entity"], "this person") if "person" in row else row["question"]
        answers = [row["answer"], row.get("paraphrased_answer"), *row.get("perturbed_answer", [])]
        found += [template.question.format(prompt=question, completion=answer) for answer in answers if answer]
    return found
