"""`evaluate --memory-budget`: how many records are scored, and answers written, at once.

A scoring pass holds logits of all places of its batch, of two models where one is compared with the retrained; writing
holds keys and values of all tokens of its batch. Both grow with the rows of a batch and no number depends on them, so
rows are halved from `--batch-size` on until the program, compiled from shapes, is within the budget (`runs.budget`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.data import Encoded, shapes_of
from jaxunlearn.evals.divergence import batch_divergence
from jaxunlearn.evals.score import batch_scores
from jaxunlearn.models.generation import PROMPT_BUCKET, continue_batch, rows_for
from jaxunlearn.models.sampling import Sampling
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs.budget import bytes_of, first_within
from jaxunlearn.runs.facts import device_bytes, size_text
from jaxunlearn.runs.headers import Checkpoint
from jaxunlearn.runs.programs import Program, abstract, model_of
from jaxunlearn.runs.settings import Evaluate
from jaxunlearn.types import Model, Params, TokenBatch


class Rows(NamedTuple):
    """Rows of a batch: records scored, answers written (None where none are)."""

    scored: int
    written: int | None

    def __str__(self) -> str:
        written = "" if self.written is None else f" and {self.written} written"
        return f"{self.scored} scored{written} at once"


def choose(
    settings: Evaluate,
    folders: Mapping[str, Path],
    texts: Sequence[Encoded],
    mesh: Mesh,
    say: Callable[[str], object],
    *,
    writes: bool,
) -> Rows:
    """The most rows, at most `settings.batch_size`, with which every model stays within `settings.memory_budget`.

    Args:
        settings: of the evaluation.
        folders: the models, by column.
        texts: all that is scored.
        mesh: of one device or more.
        say: told of every number of rows that is tried.
        writes: whether answers are written.

    Raises:
        ValueError: a single row takes more.
    """
    budget, asked = byte_size(settings.memory_budget), settings.memory_budget
    found = {name: _model(folder, mesh) for name, folder in folders.items()}
    # Models of one form need one compilation.
    kinds = {(one, *(leaf.dtype for leaf in jax.tree.leaves(params))): (one, params) for one, params in found.values()}
    retrained = found.get("retrained")
    remedy = "shorter records (--max-length with --truncate), or more devices (--mesh)"
    at_most = min(settings.batch_size, len(texts))
    sizes = list(dict.fromkeys(at_most >> shift for shift in range(at_most.bit_length())))

    # It stays while another is looked at, whether a program reads it or not.
    beside = 0 if retrained is None or len(found) == 1 else device_bytes(retrained[1])

    def scoring(rows: int, model: Model, params: Params) -> int:
        batch = _batch(texts, rows, mesh)
        alone = bytes_of((lambda p, b: batch_scores(model, p, b), (params, batch), ())) + beside
        if retrained is None:
            return alone
        other, theirs = retrained
        both = (lambda p, q, b: batch_divergence(other, model, p, q, b), (theirs, params, batch), ())
        return max(alone, bytes_of(both))

    def writing(rows: int, model: Model, params: Params) -> int:
        return bytes_of(_writing(rows, model, params, settings.new_tokens, texts, mesh)) + beside

    def most(what: str, taken: Callable[[int, Model, Params], int]) -> int:
        def size(rows: int) -> int:
            total = max(taken(rows, *kind) for kind in kinds.values())
            say(f"{what} {rows} at once: {size_text(total)} a device")
            return total

        return first_within(budget, sizes, size, asked, remedy)[0]

    return Rows(most("scoring", scoring), most("writing", writing) if writes else None)


def _model(folder: Path, mesh: Mesh) -> tuple[Model, Params]:
    found = Checkpoint.read(folder)
    return model_of(found.config, mesh, dtypes=found.dtypes)


def _batch(texts: Sequence[Encoded], rows: int, mesh: Mesh) -> TokenBatch:
    """The largest batch of a scoring pass, as shapes."""
    length, places = shapes_of(texts)
    of = {"tokens": (length, jnp.int32), "loss_mask": (length, jnp.float32), "positions": (places, jnp.int32)}
    return abstract(TokenBatch(**{name: jax.ShapeDtypeStruct((rows, n), kind) for name, (n, kind) in of.items()}), mesh)


def _writing(prompts: int, model: Model, params: Params, new: int, texts: Sequence[Encoded], mesh: Mesh) -> Program:
    """The program that writes answers, after prompts as long as the longest."""
    decoder, how = model.source, Sampling()
    longest = max(int(np.argmax(one.loss_mask > 0)) for one in texts)
    width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    rows = rows_for(decoder, prompts)
    of_rows = abstract((jax.ShapeDtypeStruct((rows, width), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    small: tuple[Any, ...] = (jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.float32), key)

    def write(params: Params, tokens: Any, padding: Any, stops: Any, numbers: Any, key: Any) -> Any:
        return continue_batch(decoder, new, how.shape, params, tokens, padding, stops, numbers, key)

    return write, (params, *of_rows, *small), ()
