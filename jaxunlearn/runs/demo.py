"""`jaxunlearn demo`: the whole job on a built-in corpus, without a file or a network.

A small LLaMA memorises facts about sixty fictitious people. Six of them are to be forgotten. The same model retrained
without them is the gold standard, and a second retraining with another seed shows how far two perfect answers lie
apart: the seed floor. Five methods then start from the model that knows everything.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import data, evals, methods, models
from jaxunlearn.certificate import describe
from jaxunlearn.evals import Result
from jaxunlearn.runs import record as records
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.forget import Forgotten, forget
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.references import Stored, store, substitute
from jaxunlearn.types import Model, Params

CONTEXT = 64
EPOCHS, BATCH, RATE = 24, 16, 5e-3
STEPS, FORGET_ROWS, RETAIN_ROWS = 40, 24, 32
METRICS = (
    "forget_kl",
    "retain_kl",
    "forget_probability",
    "retain_probability",
    "forget_exact_memorisation",
    "retain_exact_memorisation",
    "forget_truth_ratio",
    "forget_quality",
    "forget_loss_auc",
)
SHOWN_ANSWERS = 6


@dataclass(frozen=True)
class Demo:
    """Forget six fictitious people five ways, beside the retrained model, and write a report."""

    out: Path = Path("demo-run")
    """Folder for the report, the numbers, the data and the checkpoints; a free name is taken if it exists."""
    seed: int = 0
    """Corpus, training and batches. The methods' settings were chosen on seed 1."""


def candidates() -> dict[str, methods.Method]:
    """The five methods with the settings chosen on seed 1."""
    return {
        "npo": methods.npo(learning_rate=1e-3),
        "newton_removal": methods.newton_removal(damping=0.1, cg_steps=8, max_kl=1e-3),
        "fisher_removal": methods.fisher_removal(damping=1e-2, samples=32, max_kl=1e-3),
        "gauss_newton_ascent": methods.gauss_newton_ascent(damping=0.1, max_kl=1e-3),
        "counterfactual_matching": methods.counterfactual_matching(damping=0.1, max_kl=1e-2),
    }


class Corpus(NamedTuple):
    """The data of the demo, encoded."""

    tokenizer: Any
    forget: list[data.Encoded]
    retain: list[data.Encoded]
    holdout: list[data.Encoded]
    rows: data.Corpus


class Outcome(NamedTuple):
    """One method's result."""

    run: Forgotten
    result: Result
    seconds: float


def demo(settings: Demo) -> Path:
    """Run it; returns the folder written."""
    out = _free(settings.out)
    start = time.monotonic()
    with Reporter(out) as reporter:
        corpus = _corpus(settings.seed)
        model, trained, seconds = _train(corpus, settings.seed, reporter)
        stored = _ask(model, trained["before"], corpus, settings.seed, reporter)
        measure = _measurer(model, corpus, trained["retrained"], reporter)
        results = {name: measure(name, trained[name]) for name in ("retrained", "before")}
        floor = _floor(model, trained, corpus)
        outcomes = {
            name: _forget(name, method, model, trained["before"], corpus, stored, settings.seed, measure, reporter)
            for name, method in candidates().items()
        }
        best = _best(outcomes)
        _write(out, settings, model, trained, corpus, results, outcomes, floor, best, seconds, reporter)
        reporter.say(f"{time.monotonic() - start:.0f} s in all; open {out / 'report.html'}")
    return out


def _free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist: earlier results are never touched."""
    found, number = out, 1
    while found.exists():
        number += 1
        found = out.with_name(f"{out.name}-{number}")
    return found


def _corpus(seed: int) -> Corpus:
    rows = data.corpus(seed=seed)
    tokenizer = data.train_tokenizer(data.training_texts(rows))
    forget_set, retain, holdout, authors, world = (
        data.encode(data.from_rows(part), tokenizer, max_length=CONTEXT) for part in rows
    )
    return Corpus(tokenizer, forget_set, retain + authors + world, holdout, rows)


def _train(corpus: Corpus, seed: int, reporter: Reporter) -> tuple[Model, dict[str, Params], dict[str, float]]:
    config = models.DecoderConfig(
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
    everything = corpus.forget + corpus.retain
    shape = data.shapes_of(everything)
    trained, seconds = {}, {}
    for number, (name, encoded) in enumerate(
        {"before": everything, "retrained": corpus.retain, "second retrained": corpus.retain}.items()
    ):
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
    ascends = methods.CATALOGUE[name].ascends
    start = time.monotonic()
    with reporter.stage(name, STEPS) as stage:
        run = forget(
            method, model, jax.tree.map(jnp.copy, before), corpus.forget, corpus.retain, stored,
            steps=STEPS, batch_size=FORGET_ROWS, retain_size=RETAIN_ROWS, seed=seed,
            stop_at_nll=stored.unseen_nll if ascends else None,
            advance=stage.advance,
        )  # fmt: skip
        jax.block_until_ready(run.state.params)
    seconds = time.monotonic() - start
    return Outcome(run, measure(name, run.state.params), seconds)


def _best(outcomes: dict[str, Outcome]) -> str:
    """Closest to the retrained model on forget among those that keep 99% of retain; if none does, the best keeper."""
    kept = {n: o for n, o in outcomes.items() if _value(o.result, "retain_exact_memorisation") >= 0.99}
    if kept:
        return min(kept, key=lambda n: _value(kept[n].result, "forget_kl"))
    return max(outcomes, key=lambda n: _value(outcomes[n].result, "retain_exact_memorisation"))


def _value(result: Result, metric: str) -> float:
    value = result[metric]["agg_value"]
    return float("nan") if value is None else value


def _write(out, settings, model, trained, corpus, results, outcomes, floor, best, seconds, reporter) -> None:
    from jaxunlearn.reports import side_by_side, to_markdown

    table = {
        "before": results["before"],
        **{n: o.result for n, o in outcomes.items()},
        "retrained": results["retrained"],
    }
    extra = _costs(outcomes, seconds)
    reporter.console.print(
        side_by_side(table, metrics=METRICS, floor=floor, extra=extra, title="Forgetting six people")
    )
    (out / "table.md").write_text(to_markdown(table, metrics=METRICS, floor=floor, extra=extra), encoding="utf-8")
    evals.write_result(out / "results.json", {"floor": floor, "costs": extra, "results": table})
    _write_data(out / "data", corpus)
    certificate = describe(outcomes[best].run.info.certificate, outcomes[best].run.info.curvature)
    with reporter.stage("writing the report and three checkpoints", 1) as stage:
        folders = {"before": trained["before"], "retrained": trained["retrained"]}
        folders["forgotten"] = outcomes[best].run.state.params
        for name, params in folders.items():
            facts = {"method": best, "history": outcomes[best].run.history} if name == "forgotten" else {}
            inputs = {"model": (out / "before").resolve()} if name == "forgotten" else {}
            command = "unlearn" if name == "forgotten" else "demo"
            text = records.record(command, settings, inputs, certificate=certificate.splitlines(), **facts)
            models.save(out / name, model, params, tokenizer=corpus.tokenizer, extra={records.FILE: text})
        _report(out, settings, model, trained, corpus, table, outcomes, floor, best, extra, certificate)
        stage.advance()
    reporter.say(f"best: {best} (closest to the retrained model among those that kept what they should)")


def _costs(outcomes: dict[str, Outcome], seconds: dict[str, float]) -> dict[str, dict[str, float | str]]:
    """Steps, gradients and curvature products of each method, and its time as a share of retraining."""
    costs: dict[str, dict[str, float | str]] = {
        "steps": {}, "gradients": {}, "Hessian or Gauss-Newton products": {}, "time, share of retraining": {}
    }  # fmt: skip
    for name, outcome in outcomes.items():
        method, steps = candidates()[name], len(outcome.run.history)
        sampled = 1 if name == "fisher_removal" else 0  # its per-example gradients cover one retain batch
        trusted = 0 if outcome.run.info.curvature is None else steps  # the trust region's own product
        costs["steps"][name] = steps
        costs["gradients"][name] = steps * (len(method.objective.terms) + sampled)
        costs["Hessian or Gauss-Newton products"][name] = outcome.run.products + trusted
        costs["time, share of retraining"][name] = outcome.seconds / seconds["retrained"]
    return costs


def _write_data(folder: Path, corpus: Corpus) -> None:
    import json

    folder.mkdir()
    parts = {
        "forget": corpus.rows.forget,
        "retain": [*corpus.rows.retain, *corpus.rows.authors, *corpus.rows.world],
        "holdout": corpus.rows.holdout,
    }
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _report(out, settings, model, trained, corpus, table, outcomes, floor, best, extra, certificate) -> None:
    from jaxunlearn import reports

    points = [
        reports.Point(name, _value(result, "forget_kl"), _value(result, "retain_kl"), _kind(name, best))
        for name, result in table.items()
        if name != "retrained"
    ]
    bounds = floor["forget_kl"], floor["retain_kl"]
    plane = reports.forget_keep_plane(points, floor=bounds)
    reports.forget_keep_plane(points, out / "plane.png", floor=bounds, format="png")
    kept = ("forget_nll", "retain_nll", "retain_kl")
    history = {
        name: [{"step": i + 1, **{k: s[k] for k in kept}} for i, s in enumerate(outcome.run.history)]
        for name, outcome in outcomes.items()
    }
    titles = {"forget_nll": "NLL on forget", "retain_nll": "NLL on retain", "retain_kl": "KL on retain, per step"}
    figures = [
        reports.Figure(
            plane,
            "Forgetting against keeping",
            "Left is forgotten, down is kept, both measured as distance to the model retrained without the six people. "
            "The shaded corner is how far two retrained models lie apart.",
            "; ".join(f"{p.label}: {p.x:.2f} on forget, {p.y:.3f} on retain" for p in points),
        ),
        reports.Figure(
            reports.curves(history, titles=titles),
            "Step by step",
            "Methods that ascend stop where the forget loss reaches that of people who do not exist.",
            "Loss on forget and retain, and KL on retain, by step for each method.",
        ),
    ]
    reports.write_page(
        out / "report.html",
        title="Forgetting six fictitious people",
        verdict=reports.judge(table["before"], table[best], table["retrained"], floor=floor),
        table=reports.lay_out(table, metrics=METRICS, floor=floor, extra=extra),
        figures=figures,
        answers=_answers(model, trained, corpus, outcomes[best].run.state.params),
        certificate=dict(enumerate(certificate.splitlines(), start=1)),
        config={"seed": settings.seed, "best method": best, "epochs": EPOCHS, "steps at most": STEPS},
        environment=records.environment(),
        notes=(
            "The people, their names and their facts are generated; nobody real is in the data.",
            "Settings of all methods were chosen on seed 1; a run with another seed shows results they were not "
            "chosen on.",
            "Times include compilation and the certificate of every step, on the machine named under Environment.",
            "Forgetting is measured by what the model says. No claim is made about attacks that were not run.",
        ),
    )


def _kind(name: str, best: str) -> str:
    return "before" if name == "before" else "lead" if name == best else "method"


def _answers(model: Model, trained: dict[str, Params], corpus: Corpus, forgotten: Params):
    from jaxunlearn import reports

    chosen = {"To be forgotten": corpus.forget[:SHOWN_ANSWERS], "To be kept": corpus.retain[:SHOWN_ANSWERS]}
    asked = [one for part in chosen.values() for one in part]
    prompts = [one.tokens[: int(one.loss_mask.argmax())].tolist() for one in asked]
    written = {
        name: [
            corpus.tokenizer.decode(tokens).strip()
            for tokens in models.generate(
                model, params, prompts, max_new_tokens=20, stop_ids=[corpus.tokenizer.eos_token_id]
            )
        ]
        for name, params in (("before", trained["before"]), ("after", forgotten), ("retrained", trained["retrained"]))
    }
    parts = [part for part, ones in chosen.items() for _ in ones]
    return [
        reports.Answer(
            one.record.prompt, one.record.completion, *(written[name][i] for name in ("before", "after", "retrained")),
            part=parts[i],
        )
        for i, one in enumerate(asked)
    ]  # fmt: skip
