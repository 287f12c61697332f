"""What an anchor loses by being stored: the same forgetting, held by several forms of one curvature.

`anchored_matching` forgets without a retain example, held by EK-FAC factors of all that the model had learned. Here the
anchor is exchanged, on the built-in problem of methods.py, and nothing else: 60 steps of AdamW from the same start.

    EK-FAC                  what is stored: factors of everything, the records to be forgotten among it
    EK-FAC of what is kept  the same without those, which nobody can take who no longer has the rest
    exact                   products with the whole Gauss-Newton matrix of everything, at the start
    exact, of what is kept  products with that of the retain set; what all others approximate

All are softened by the same temperature. What a form keeps at the strength at which it forgets as much is what counts:
read KL on retain against memory.

    python benchmarks/anchors.py
    python benchmarks/anchors.py --seeds 2 --strengths 10 --cache CACHE    # models that methods.py has trained
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from comparison.measures import distance
from comparison.problems import Problem, build, default_cache
from comparison.trial import answers_before
from measure import markdown, where

from jaxunlearn import curvature, data, methods, operators
from jaxunlearn.curvature import EKFAC, GaussNewton, Stored
from jaxunlearn.runs.curvature import factors
from jaxunlearn.transforms import STORED, anchor_by_curvature
from jaxunlearn.types import Model
from jaxunlearn.unlearn import init, unlearn_step

TEMPERATURE, RATE, BATCH = 3.0, 3e-3, 24
SHOWN = ("retain_kl", "forget_kl", "unseen_kl", "memory")

Anchor = tuple[Callable[..., Any], Any]  # a recipe, and what it reads in the place of examples


def main() -> None:
    about, usage = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--strengths", nargs="+", type=float, default=[3.0, 10.0, 30.0])
    parser.add_argument("--anchors", nargs="+", choices=ANCHORS, default=list(ANCHORS), metavar="ANCHOR")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of trained models")
    args = parser.parse_args()
    machine, found = where(), {}
    for seed in args.seeds:
        problem = build("builtin", seed, args.cache, Path(), lambda line: print(line, flush=True))
        for name in args.anchors:
            anchor = ANCHORS[name](problem)
            for strength in args.strengths:
                numbers = forget(problem, anchor, strength, args.steps)
                found.setdefault((name, strength), []).append([numbers[key] for key in SHOWN])
                print(f"seed {seed}, {name}, strength {strength:g}: {found[name, strength][-1]}", flush=True)
    head = ["anchor", "strength", *(name.replace("_kl", ", KL").replace("_", " ") for name in SHOWN)]
    rows = [[name, f"{strength:g}", *map(_cell, zip(*of, strict=True))] for (name, strength), of in found.items()]
    print(f"\n{markdown(head, rows)}\n\nSeeds {', '.join(map(str, args.seeds))}; {args.steps} steps; {machine}")


def forget(problem: Problem, anchor: Anchor, strength: float, steps: int) -> dict[str, float | None]:
    """Matching in both directions from the problem's model, held by that anchor; how far it ends from retraining."""
    recipe, content = anchor
    held = optax.chain(
        anchor_by_curvature(recipe, strength=strength, metric=STORED),
        optax.with_extra_args_support(optax.adamw(RATE, weight_decay=0.0)),
    )
    method = methods.matching(retain="none")._replace(transform=held, certify=False)
    forgotten = problem.sets["forget"]
    stored = answers_before(method, problem.model, problem.before, problem, forgotten, [])
    state = init(method, problem.model, jax.tree.map(jnp.copy, problem.before), key=jax.random.key(0))
    step = jax.jit(lambda state, batch: unlearn_step(method, problem.model, state, batch))
    pairs = data.pair(forgotten, [], BATCH, retain_size=0, seed=problem.seed, epochs=steps)
    for one, _ in zip(pairs, range(steps), strict=False):
        state, _ = step(state, jax.device_put(stored.complete(one)._replace(curvature=content)))
    return distance(problem, problem.model, state.params)


def ekfac(problem: Problem) -> Anchor:
    return Stored(), curvature.load(problem.softened, problem.before)


def ekfac_of_kept(problem: Problem) -> Anchor:
    recipe = EKFAC(temperature=TEMPERATURE, eigen="host")
    return Stored(), factors(recipe, problem.model, problem.before, problem.kept, batch_size=32)


def exact(problem: Problem) -> Anchor:
    return _at_start(problem, problem.sets["forget"] + problem.kept)


def exact_of_kept(problem: Problem) -> Anchor:
    return _at_start(problem, problem.kept)


ANCHORS: dict[str, Callable[[Problem], Anchor]] = {
    "EK-FAC": ekfac,
    "EK-FAC of what is kept": ekfac_of_kept,
    "exact": exact,
    "exact, of what is kept": exact_of_kept,
}


def _at_start(problem: Problem, encoded: list[data.Encoded]) -> Anchor:
    """The Gauss-Newton matrix at the parameters where forgetting began, of answers softened by the temperature.

    The Gauss-Newton matrix of logits divided by T has J/T in the place of J, hence the factor; parameters and examples
    are handed on as arguments, for the compiler would compute with constants for minutes.
    """
    softened = Model(logits=lambda params, tokens: problem.model.logits(params, tokens) / TEMPERATURE)

    def taken(model: Model, params: Any, content: Any):
        return operators.scaled(TEMPERATURE**2, GaussNewton()(softened, *content), psd=True)

    return taken, (problem.before, jax.device_put(data.collate(encoded)))


def _cell(values: tuple[float | None, ...]) -> str:
    """The mean over seeds, or that some run broke."""
    return "broken" if None in values else f"{np.mean(values):.3f}"


if __name__ == "__main__":
    main()
