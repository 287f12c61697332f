"""One request after the other: the ledger that an unlearned folder carries.

Every run of `unlearn` adds a line to the list it found in the record of the folder it started from: which records,
when, by which method, with which certificate, and the hashes of the weights before and after. So the newest folder
tells the whole story, and each step of it can be checked: it started from the weights that the line before ended with,
unless `finetune` lies between, which carries the ledger on.

Records are kept as salted hashes, never as text: enough to notice that a record of an earlier request comes back in a
retain set, which would teach it again. (Whoever guesses a record's text can confirm the guess.)
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.data import DataError, Record, normalised
from jaxunlearn.runs.record import FILE, digest, read_record


def earlier(folder: str | Path, weights: str | None) -> list[dict[str, Any]]:
    """The requests that the model in `folder` has answered, the oldest first; none without a record.

    `weights` is the hash of the weights that are there now.

    Raises:
        ValueError: when the weights are not those that the record was written for.
    """
    found = read_record(folder) or {}
    answered = list(found.get("requests", []))
    if answered and found.get("weights") != weights:
        raise ValueError(
            f"the weights in {folder} are not those that its {FILE} was written for, so its ledger of {len(answered)} "
            f"requests does not describe them; restore the folder, or remove {FILE} to begin a new ledger"
        )
    return answered


def check_number(number: int | None, answered: Sequence[dict[str, Any]], folder: str | Path) -> None:
    """Raises ValueError when `number` is given and is not the next one."""
    if number is not None and number != len(answered) + 1:
        raise ValueError(
            f"--request {number}: {folder} has answered {len(answered)} requests, so the next is --request "
            f"{len(answered) + 1}"
        )


def returning(records: Sequence[Record], answered: Sequence[dict[str, Any]]) -> list[str]:
    """Where records of earlier requests stand among `records`: "retain.jsonl, line 3 (request 1)"."""
    back = []
    for line in answered:
        salt, gone = line["salt"], set(line["records"])
        found = [record.where for record in records if fingerprint(record, salt) in gone]
        back += [f"{where} (request {line['number']})" for where in found]
    return back


def check_retain(retain: Sequence[Record], answered: Sequence[dict[str, Any]]) -> None:
    """Raises DataError, naming each, when records of earlier requests stand in the retain set."""
    back = returning(retain, answered)
    if back:
        more = f" and {len(back) - 8} more" if len(back) > 8 else ""
        raise DataError(
            f"the retain set holds records that this model was asked to forget: {', '.join(back[:8])}{more}. "
            "Remove them: keeping them teaches them again."
        )


def replayed(answered: Sequence[dict[str, Any]]) -> list[str]:
    """The forget files of earlier requests, to be forgotten once more beside the new one.

    Raises:
        ValueError: naming every file that is gone or not what it was.
    """
    problems, files = [], []
    for line in answered:
        path, known = line["forget"]["path"], line["forget"]["sha256"]
        if known is None or digest(path) != known:
            problems.append(f"request {line['number']}: {path} {'changed' if Path(path).is_file() else 'is not there'}")
        files.append(path)
    if problems:
        raise ValueError(f"--replay needs the forget files as they were: {'; '.join(problems)}")
    return files


def entry(
    number: int, method: str, forget: str, records: Sequence[Record], certificate: dict[str, Any], before: str | None
) -> dict[str, Any]:
    """The ledger's line for a request that is being answered, all but the hash of the weights that come out."""
    salt = os.urandom(16).hex()
    return {
        "number": number,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "method": method,
        "forget": {"path": forget, "sha256": digest(forget)},
        "salt": salt,
        "records": sorted({fingerprint(record, salt) for record in records}),
        "certificate": certificate,
        "weights_before": before,
    }


def fingerprint(record: Record, salt: str) -> str:
    """A salted hash of a record's text, the same whatever its case and white space."""
    return hashlib.sha256(bytes.fromhex(salt) + "\0".join(normalised(record)).encode("utf-8")).hexdigest()
