"""`jaxunlearn demo`: the whole job on a built-in corpus, without a file or a network.

A small LLaMA memorises facts about sixty fictitious people. Six of them are to be forgotten. The same model retrained
without them is the gold standard, and a second retraining with another seed shows how far two perfect answers lie
apart: the seed floor. Five methods then start from the model that knows everything.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import data, evals, methods, models
from jaxunlearn.evals import Result
from jaxunlearn.files import write_new
from jaxunlearn.runs import dry_run_own
from jaxunlearn.runs import record as records
from jaxunlearn.runs.comparison import Comparison, Outcome, closest, table, write, write_rows
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.references import Stored, store, substitute
from jaxunlearn.runs.settings import Demo
from jaxunlearn.types import Model, Params

CONTEXT = 64
EPOCHS, BATCH, RATE = 24, 16, 5e-3
STEPS, MATCHING_STEPS, FORGET_ROWS, RETAIN_ROWS = 60, 25, 24, 32


OPTIONS = {
    "npo": {"learning_rate": 1e-4},
    "newton_removal": {"damping": 0.1, "cg_steps": 8, "max_kl": 1e-4},
    "fisher_removal": {"damping": 1e-3, "samples": 32, "max_kl": 3e-4},
    "gauss_newton_ascent": {"damping": 0.01, "max_kl": 3e-4},
    "counterfactual_matching": {"damping": 0.01, "max_kl": 1e-2, "cg_steps": 10},
}
"""The five methods, their hyperparameters chosen on seed 1."""

NOTES = (
    "The people, their names and their facts are generated; nobody real is in the data.",
    "The methods' settings were chosen on seed 1; with any other seed the results are ones they were not chosen on.",
    "Times include compilation and the certificate of every step, on the machine named under Environment.",
    "Forgetting is measured by what the model says. No claim is made about attacks that were not run.",
)


class Corpus(NamedTuple):
    """The data of the demo, encoded."""

    tokenizer: Any
    forget: list[data.Encoded]
    retain: list[data.Encoded]
    holdout: list[data.Encoded]
    rows: data.Corpus


def demo(settings: Demo) -> Path:
    """Run it; returns the folder written, with `--dry-run` the one that would be."""
    out, corpus = _free(settings.out), _corpus(settings.seed)
    if settings.dry_run:
        _tell(out, corpus)
        return out
    start = time.monotonic()
    with Reporter(out) as reporter:
        model, trained, seconds = _train(corpus, settings.seed, reporter)
        stored = _ask(model, trained["before"], corpus, settings.seed, reporter)
        measure = _measurer(model, corpus, trained["retrained"], reporter)
        results = {name: measure(name, trained[name]) for name in ("retrained", "before")}
        floor = _floor(model, trained, corpus)
        outcomes = {
            name: _forget(name, method, model, trained["before"], corpus, stored, settings.seed, measure, reporter)
            for name, method in _methods().items()
        }
        found = Comparison(
            title="Forgetting six fictitious people",
            model=model,
            tokenizer=corpus.tokenizer,
            before=trained["before"],
            retrained=trained["retrained"],
            forget=corpus.forget,
            retain=corpus.retain,
            results=results,
            outcomes=outcomes,
            floor=floor,
            costs=_costs(outcomes, seconds["retrained"]),
            best=closest(outcomes),
            settings={"seed": settings.seed, "epochs": EPOCHS, "most steps": STEPS, "methods": OPTIONS},
            notes=NOTES,
        )
        reporter.console.print(table(found, reporter.console.width))
        with reporter.stage("writing the report and three checkpoints", 1) as stage:
            write_rows(out / "data", _files(corpus))
            write(out, found)
            write_new(out / records.CONFIG, records.configuration("demo", settings).encode())
            stage.advance()
        reporter.say(f"closest to the retrained model of those that kept 99%: {found.best}")
        reporter.say(f"{time.monotonic() - start:.0f} s in all; open {out / 'report.html'}")
    return out


def _free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist: earlier results are never touched."""
    found, number = out, 1
    while found.exists():
        number += 1
        found = out.with_name(f"{out.name}-{number}")
    return found


def _tell(out: Path, corpus: Corpus) -> None:
    """What would be done, for `--dry-run`."""
    trainings, recipes = _trainings(corpus), _methods()
    lesson = dry_run_own.Lesson(
        config=_config(corpus),
        forget=corpus.forget,
        retain=corpus.retain,
        holdout=corpus.holdout,
        trainings={name: EPOCHS * data.steps_per_epoch(len(rows), BATCH) for name, rows in trainings.items()},
        sizes=(BATCH, FORGET_ROWS, RETAIN_ROWS),
        methods={name: (one, _most_steps(name), OPTIONS[name].get("cg_steps", 1)) for name, one in recipes.items()},
        files=_files(corpus),
    )
    dry_run_own.demo(out, lesson)


def _corpus(seed: int) -> Corpus:
    rows = data.corpus(seed=seed)
    tokenizer = data.train_tokenizer(data.training_texts(rows))
    forget_set, retain, holdout, authors, world = (
        data.encode(data.from_rows(part), tokenizer, max_length=CONTEXT) for part in rows
    )
    return Corpus(tokenizer, forget_set, retain + authors + world, holdout, rows)


def _config(corpus: Corpus) -> models.DecoderConfig:
    return models.DecoderConfig(
        vocab_size=len(corpus.tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=corpus.tokenizer.bos_token_id,
        eos_token_id=corpus.tokenizer.eos_token_id,
    )


def _trainings(corpus: Corpus) -> dict[str, list[data.Encoded]]:
    """What the three models are trained on."""
    return {"before": corpus.forget + corpus.retain, "retrained": corpus.retain, "second retrained": corpus.retain}


def _train(corpus: Corpus, seed: int, reporter: Reporter) -> tuple[Model, dict[str, Params], dict[str, float]]:
    config, trainings = _config(corpus), _trainings(corpus)
    shape = data.shapes_of(trainings["before"])
    trained, seconds = {}, {}
    for number, (name, encoded) in enumerate(trainings.items()):
        start = time.monotonic()
        model, params = models.init(config, jax.random.key(3 * seed + number))
        with reporter.stage(f"training: {name}", EPOCHS * data.steps_per_epoch(len(encoded), BATCH)) as stage:
            done = fit(
                model, params, encoded,
                epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, seed=3 * seed + number, shape=shape,
                advance=stage.advance,
            )  # fmt: skip
            trained[name] = jax.block_until_ready(done.params)
        seconds[name] = time.monotonic() - start
    return model, trained, seconds


def _ask(model: Model, params: Params, corpus: Corpus, seed: int, reporter: Reporter) -> Stored:
    every_need = methods.counterfactual_matching()._replace(needs=("forget_nll", "counterfactual_top"))
    with reporter.stage("asking about people that do not exist", 2 * len(corpus.forget)) as stage:
        prompts = substitute(corpus.forget, corpus.retain, corpus.tokenizer, k=32, seed=seed, max_length=CONTEXT)
        return store(
            every_need, model, params, corpus.forget, corpus.retain, prompts=prompts, top_k=128, advance=stage.advance
        )


def _measurer(model: Model, corpus: Corpus, retrained: Params, reporter: Reporter):
    reference: dict[str, Result] = {}

    def measure(name: str, params: Params) -> Result:
        with reporter.stage(f"measuring: {name}", 1) as stage:
            found = evals.evaluate(
                model,
                params,
                corpus.tokenizer,
                forget=corpus.forget,
                retain=corpus.retain,
                holdout=corpus.holdout,
                reference=(model, retrained),
                reference_result=reference.get("retrained"),
                max_length=CONTEXT,
                batch_size=128,
            )
            stage.advance()
        reference.setdefault(name, found)
        return found

    return measure


def _floor(model: Model, trained: dict[str, Params], corpus: Corpus) -> dict[str, float]:
    """KL between two retrained seeds: what "like retrained" can mean at best."""
    pair = trained["retrained"], trained["second retrained"]
    return {
        "forget_kl": evals.kl(model, *pair, corpus.forget).mean_kl,
        "retain_kl": evals.kl(model, *pair, corpus.retain).mean_kl,
    }


def _forget(
    name: str,
    method: methods.Method,
    model: Model,
    before: Params,
    corpus: Corpus,
    stored: Stored,
    seed: int,
    measure,
    reporter: Reporter,
) -> Outcome:
    ascends, steps = methods.CATALOGUE[name].ascends, _most_steps(name)
    start = time.monotonic()
    with reporter.stage(name, steps) as stage:
        run = forget(
            method, model, jax.tree.map(jnp.copy, before), corpus.forget, corpus.retain, stored,
            steps=steps, batch_size=FORGET_ROWS, retain_size=RETAIN_ROWS, seed=seed,
            stop_at_nll=stored.unseen_nll if ascends else None,
            advance=stage.advance,
        )  # fmt: skip
        jax.block_until_ready(run.state.params)
    seconds = time.monotonic() - start
    return Outcome(run, measure(name, run.state.params), seconds)


def _most_steps(name: str) -> int:
    return STEPS if methods.CATALOGUE[name].ascends else MATCHING_STEPS


def _methods() -> dict[str, methods.Method]:
    return {name: methods.CATALOGUE[name].make(**options) for name, options in OPTIONS.items()}


def _costs(outcomes: dict[str, Outcome], retraining: float) -> dict[str, dict[str, float | str]]:
    """Steps, gradients and curvature products of each method, and its time as a share of retraining."""
    costs = {name: {} for name in ("steps", "gradients", "curvature products", "time / retraining")}
    for name, method in _methods().items():
        outcome = outcomes[name]
        steps = len(outcome.run.history)
        sampled = 1 if name == "fisher_removal" else 0  # its per-example gradients cover one retain batch
        trusted = 0 if outcome.run.info.curvature is None else steps  # the trust region's own product
        costs["steps"][name] = steps
        costs["gradients"][name] = steps * (len(method.objective.terms) + sampled)
        costs["curvature products"][name] = outcome.run.products + trusted
        costs["time / retraining"][name] = outcome.seconds / retraining
    return costs


def _files(corpus: Corpus) -> dict[str, list[dict[str, Any]]]:
    rows = corpus.rows
    return {"forget": rows.forget, "retain": [*rows.retain, *rows.authors, *rows.world], "holdout": rows.holdout}
