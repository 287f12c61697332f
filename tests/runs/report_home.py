"""A run that forgot and what lies around it, for tests of `jaxunlearn report`.

No model is needed: a checkpoint is known by the hash of its weight files, whatever is in them.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxunlearn.cli import main
from jaxunlearn.evals.result import by_index, measured
from jaxunlearn.reports import figures
from jaxunlearn.runs.record import FILE, digest

PICTURES = {name: getattr(figures, name) for name in ("losses", "steps", "solves")}
MARKER = "SOMEBODY-LIVES-IN-NOWHERE"
FORGET, RETAIN = 4, 40


class Home(NamedTuple):
    """An unlearned folder `gone`, the models and records around it, and the result files of `measure`."""

    folder: Path

    def __truediv__(self, name):
        return self.folder / name


def checkpoint(folder, content):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    return folder


def named(*files):
    return {path.stem: {"path": str(path), "sha256": digest(path)} for path in files}


def make(folder):
    """The folders and records of a run that forgot, as it left them."""
    found = Home(folder)
    for name in ("before", "gone", "retrained", "second", "other"):
        checkpoint(found / name, name.encode())
    for part, size in (("forget", FORGET), ("retain", RETAIN)):
        rows = [{"question": f"Where {part} {i} {MARKER}?", "answer": f"Here {i} {MARKER}."} for i in range(size)]
        (found / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {"model": {"path": str(found / "before"), "sha256": digest(found / "before")}}
    line = {
        "number": 1, "time": "2026-11-25T09:29:24Z", "method": "newton_removal", "salt": "00",
        "records": [f"hash {i}" for i in range(FORGET)],
        "forget": named(found / "forget.jsonl")["forget"], "certificate": {},
        "weights_before": digest(found / "before"), "weights_after": digest(found / "gone"),
    }  # fmt: skip
    record = {
        "command": "unlearn",
        "settings": {"method": "newton_removal", "text": {"max_length": 32, "prompt_field": None}},
        "inputs": before | named(found / "forget.jsonl", found / "retain.jsonl"),
        "environment": {"jax": "0.10.2"},
        "weights": digest(found / "gone"),
        "requests": [line],
        "method": "newton_removal", "steps": 2, "stopped": "unseen", "stop_at_nll": 2.0, "seconds": 3.2,
        "certificate": {"forget_before": 1.0, "forget_after": 1.5, "forget_predicted": 0.4},
        "history": [{"forget_nll": 1.0, "residual": 0.5}, {"forget_nll": 1.5, "residual": 0.25}],
    }  # fmt: skip
    (found / "gone" / FILE).write_text(json.dumps(record))
    return found


def result(kl, kept=1.0):
    words = {part: {str(i): f"wrote {part} {i} {MARKER}" for i in range(n)} for part, n in SIZES.items()}
    scored = {f"{part}_rouge_l": measured(f"{part}_rouge_l", np.ones(n)) for part, n in SIZES.items()}
    for part, measure in scored.items():
        measure["generated_by_index"] = words[part.removesuffix("_rouge_l")]
    unseen = {"holdout_by_index": by_index(np.array([-3.0, -1.0]))}
    losses = measured("forget_loss_auc", -np.arange(1.0, FORGET + 1), aggregate=0.5, interval=[0.2, 0.8], **unseen)
    return scored | {
        "forget_kl": measured("forget_kl", np.full(FORGET, kl)),
        "retain_kl": measured("retain_kl", np.full(RETAIN, kl / 10)),
        "forget_nll": measured("forget_nll", np.full(FORGET, 2.0)),
        "retain_exact_memorisation": measured("retain_exact_memorisation", np.full(RETAIN, kept)),
        "forget_loss_auc": losses,
    }


SIZES = {"forget": FORGET, "retain": RETAIN}


def measure(home, name, command="evaluate", *, after="gone", kl=0.5, hashes=True, **changes):
    """A result file as `evaluate` or `attack` leaves it."""
    folders = {"before": home / "before", "after": home / after, "retrained": home / "retrained"}
    content = {
        "command": command,
        "models": {column: str(folder) for column, folder in folders.items()},
        "weights": {column: digest(folder) if hashes else None for column, folder in folders.items()},
        "inputs": named(home / "forget.jsonl", home / "retain.jsonl"),
        "results": {"before": result(4.0), "after": result(kl), "retrained": result(1e-9)},
    }
    (home / name).write_text(json.dumps(content | changes))
    return str(home / name)


def reported(home, *options, code=0, run="gone"):
    out = home / f"page-{len(list(home.folder.glob('page-*')))}.html"
    assert main(["report", str(home / run), "--out", str(out), *map(str, options)]) == code
    return " ".join(out.read_text().split()) if code == 0 else None


def verdict(page):
    return re.search(r'class="headline">(.*?)</p>', page)[1]
