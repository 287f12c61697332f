"""What is forgotten: a model that knows everything, one retrained without the forget set, and a second such model.

Two corpora, both learned by a small LLaMA that never read the forget set before, so that the retrained model is the
gold standard and not an approximation of it:

    builtin         sixty fictitious people, asked about by name, learned from nothing; ten of them are to be forgotten
    tofu-forget01   TOFU's files (Maini et al. 2024): forty questions about two authors; -forget05 and -forget10
                    likewise. A base model, the same for every seed, has learned to speak from those of TOFU's authors
                    that are neither to be forgotten nor kept nor held out; the corpus is fine-tuned into it, as in
                    TOFU. Learned from nothing, 500 rows make a model that loses 11 nats on every other sentence.

To either are added files with access codes of three digits: secrets of a known space of a thousand, by which exposure
is measured. The forget set is cut into ten requests. Everything is a pure function of the name and the seed, and kept
in a cache folder.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from comparison import corpora
from jaxunlearn import curvature, data, files, models
from jaxunlearn.curvature import EKFAC
from jaxunlearn.methods import counterfactual_matching
from jaxunlearn.runs.curvature import factors as take
from jaxunlearn.runs.fit import Fitted, fit, mean_nll
from jaxunlearn.runs.references import store, substitute
from jaxunlearn.types import Model, Params

SUBSTITUTES, TOP_K = 32, 128
ROOM = 16  # tokens


class Size(NamedTuple):
    """How large a model is and how long it learns."""

    vocabulary: int
    hidden: int
    layers: int
    context: int
    epochs: int
    batch: int
    rate: float


class Problem(NamedTuple):
    """A corpus and the models that learned it.

    Attributes:
        name, seed: which.
        model, tokenizer: shared by all models.
        before: parameters that know everything.
        retrained, twin: learned without the forget set, from two seeds.
        sets: encoded "forget", "retain", "holdout", "authors" and "world"; the last two are kept as well.
        requests: rows of the forget set by request.
        unseen_nll: where ascents stop, nats per token: the loss of the forget answers when asked about entities that do
            not exist, or `held_out_nll`.
        held_out_nll: loss of the holdout set, nats per token, where it is needed: TOFU's questions, learned by heart,
            give their answers away whoever they name.
        secrets: rows of the forget set that hold a code.
        seconds: processor seconds of one retraining.
        gradients: steps of one retraining.
        factors, softened: folders of EK-FAC factors of everything at `before`, at temperatures 1 and 3.
    """

    name: str
    seed: int
    model: Model
    tokenizer: Any
    before: Params
    retrained: Params
    twin: Params
    sets: dict[str, list[data.Encoded]]
    requests: list[list[int]]
    unseen_nll: float
    secrets: list[int]
    seconds: float
    gradients: int
    factors: Path
    softened: Path
    held_out_nll: float | None = None

    @property
    def kept(self) -> list[data.Encoded]:
        """All that is to be kept: the retain set, authors and world."""
        return self.sets["retain"] + self.sets["authors"] + self.sets["world"]

    @property
    def context(self) -> int:
        return self.model.source.config.max_position_embeddings


SIZES = {
    "builtin": Size(640, 64, 2, 64, 44, 16, 5e-3),
    "tofu-forget01": Size(2048, 128, 2, 128, 20, 8, 2e-3),
    "tofu-forget05": Size(2048, 128, 2, 128, 20, 8, 2e-3),
    "tofu-forget10": Size(2048, 128, 2, 128, 20, 8, 2e-3),
}
BASE = Size(2048, 128, 2, 128, 6, 16, 3e-3)
BASE_SEED = 0


def build(name: str, seed: int, cache: Path, tofu: Path, say: Callable[[str], None]) -> Problem:
    """The problem, from the cache where it is there."""
    size = SIZES[name]
    if name == "builtin":
        rows, base = corpora.builtin(seed), None
        tokenizer = data.train_tokenizer(corpora.texts(rows), size.vocabulary)
    else:
        rows = corpora.tofu(name, seed, tofu)
        base, tokenizer = _base(tofu, cache, say)
        rows = {part: _fitting(found, tokenizer, size.context) for part, found in rows.items()}
    sets = {
        part: data.encode(data.from_rows(found, name=part), tokenizer, max_length=size.context, truncate=True)
        for part, found in rows.items()
    }
    requests = [part.tolist() for part in np.array_split(np.arange(len(sets["forget"])), corpora.REQUESTS)]
    folder = cache / f"{name}-{seed}-{_digest(rows, size, *([base.name] if base else []))}"
    _train(folder, size, base, tokenizer, sets, seed, say)
    loaded = {part: models.load(folder / part) for part in ("before", "retrained", "twin")}
    model, facts = loaded["before"][0], json.loads((folder / "facts.json").read_text())
    factors = {temperature: folder / f"factors-{temperature}" for temperature in (1, 3)}
    for temperature, path in factors.items():
        if not path.exists():
            say(f"{name}, seed {seed}: taking factors at temperature {temperature}")
            everything = [one for part in KNOWN for one in sets[part]]
            recipe = EKFAC(temperature=temperature, eigen="host")
            curvature.save(path, take(recipe, model, loaded["before"][1], everything, batch_size=32))
    found = Problem(
        name, seed, model, tokenizer, *(loaded[part][1] for part in ("before", "retrained", "twin")),
        sets=sets,
        requests=requests,
        unseen_nll=0.0,
        secrets=[i for i, row in enumerate(rows["forget"]) if "code" in row],
        seconds=facts["seconds"],
        gradients=facts["steps"],
        factors=factors[1],
        softened=factors[3],
    )  # fmt: skip
    if base is None:
        return found._replace(unseen_nll=_unseen(found))
    held_out = mean_nll(model, found.before, sets["holdout"])
    return found._replace(unseen_nll=held_out, held_out_nll=held_out)


KNOWN = ("forget", "retain", "authors", "world")


def _fitting(rows: list[corpora.Row], tokenizer: Any, context: int) -> list[corpora.Row]:
    """The rows whose questions leave `ROOM` for the answer: all but two of forget10."""
    asked = [data.Template().question.format(prompt=row["question"], completion="") for row in rows]
    lengths = [len(ids) for ids in tokenizer(asked)["input_ids"]]
    return [row for row, length in zip(rows, lengths, strict=True) if length <= context - ROOM]


def _base(tofu: Path, cache: Path, say: Callable[[str], None]) -> tuple[Path, Any]:
    """Folder of the model that TOFU's problems start from, and its tokenizer, which never read whom they ask about."""
    rows = corpora.others(tofu)
    tokenizer = data.train_tokenizer(corpora.texts({"others": rows}), BASE.vocabulary)
    folder = cache / f"tofu-base-{_digest(rows, BASE)}"
    if not folder.exists():
        say(f"training: {folder.name}")
        encoded = data.encode(data.from_rows(rows), tokenizer, max_length=BASE.context, truncate=True)
        model, params = models.init(_config(BASE, tokenizer), jax.random.key(BASE_SEED))
        done = _fitted(BASE, model, params, encoded, BASE_SEED)
        models.save(folder, model, done.params, tokenizer=tokenizer)
    return folder, tokenizer


def _train(
    folder: Path, size: Size, base: Path | None, tokenizer: Any, sets: dict, seed: int, say: Callable[[str], None]
) -> None:
    """Trains the three models unless they are there; the folder appears whole."""
    if folder.exists():
        return
    everything = [one for part in KNOWN for one in sets[part]]
    kept = [one for part in KNOWN[1:] for one in sets[part]]
    shape = data.shapes_of(everything)
    facts = {}
    with files.new_folder(folder) as out:
        for number, (name, encoded) in enumerate({"before": everything, "retrained": kept, "twin": kept}.items()):
            say(f"training: {folder.name} {name}")
            order = 3 * seed + number
            model, params = models.load(base) if base else models.init(_config(size, tokenizer), jax.random.key(order))
            start = time.process_time()
            done = _fitted(size, model, params, encoded, order, shape)
            jax.block_until_ready(done.params)
            facts = {"seconds": time.process_time() - start, "steps": done.steps, "loss": done.losses[-1]}
            models.save(out / name, model, done.params, tokenizer=tokenizer)
        (out / "facts.json").write_text(json.dumps(facts))


def _config(size: Size, tokenizer: Any) -> models.DecoderConfig:
    return models.DecoderConfig(
        vocab_size=size.vocabulary,  # of every seed, so that their models share compiled programs
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _fitted(
    size: Size, model: Model, params: Params, encoded: list, order: int, shape: tuple[int, int] | None = None
) -> Fitted:
    return fit(
        model, params, encoded,
        epochs=size.epochs, batch_size=size.batch, learning_rate=size.rate, seed=order, shape=shape,
    )  # fmt: skip


def _unseen(problem: Problem) -> float:
    found = store(
        counterfactual_matching()._replace(needs=()), problem.model, problem.before, problem.sets["forget"], [],
        prompts=prompts(problem, problem.sets["forget"]), top_k=TOP_K,
    )  # fmt: skip
    return found.unseen_nll


def prompts(problem: Problem, forget: list[data.Encoded]) -> data.Counterfactuals:
    """Counterfactual prompts of forget records, with names that no text of the problem holds."""
    asked = [one.record.raw["entity"] for one in forget if "code" in one.record.raw]
    names = dict.fromkeys(asked, corpora.names("NPQRSTVWXZ"))
    return substitute(
        forget, problem.kept, problem.tokenizer,
        k=SUBSTITUTES, seed=problem.seed, max_length=problem.context, names=names,
    )  # fmt: skip


def _digest(*what: Any) -> str:
    """What the models depend on, so that none is taken for that of another corpus."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def default_cache() -> Path:
    """Where trained models are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxunlearn-benchmarks"
