"""One run of one candidate on one problem, with what it cost.

The loop is that of `jaxunlearn.runs.forget` without the certificate, whose measurements would be charged to the method:
a step, then the loss on the forget set, which for a method that ascends ends the run where it has reached that of
unseen text. Time is processor time, so that a busy machine does not matter, and compilation is counted apart.
"""

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from comparison.candidates import REGIMES, Candidate, Options
from comparison.problems import TOP_K, Problem, prompts
from jaxunlearn import curvature, data, models
from jaxunlearn.data.alternatives import FIELD as ALTERNATIVE
from jaxunlearn.data.alternatives import given, mismatched, refused
from jaxunlearn.methods import Method
from jaxunlearn.runs.alternatives import Alternatives, sampled
from jaxunlearn.runs.fit import mean_nll
from jaxunlearn.runs.references import Stored, store
from jaxunlearn.runs.settings import Trainable, Unlearn
from jaxunlearn.runs.trainable import choose
from jaxunlearn.types import Model, Params
from jaxunlearn.unlearn import init, unlearn_step

ADAMW = optax.inject_hyperparams(optax.adamw, static_args="weight_decay")(learning_rate=1.0, weight_decay=0.0)
LORA = Trainable(lora_rank=8)
UNLEARNING_RANK = 8
SHARE_OF_STEPS = 4  # a tenth of the forget set gets at most a quarter of the steps


class Cost(NamedTuple):
    """What a run cost, the references of the original model apart.

    Attributes:
        steps: taken.
        gradients: of forget or retain, curvature products apart.
        products: by curvature operators.
        seconds: processor seconds without compilation.
        compiling: processor seconds of compilation.
        peak: bytes that the step's program asks for: arguments, results and temporaries.
    """

    steps: int = 0
    gradients: float = 0.0
    products: int = 0
    seconds: float = 0.0
    compiling: float = 0.0
    peak: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Both, one after the other, by one program."""
        sums = (a + b for a, b in zip(self[:4], other[:4], strict=True))
        return Cost(*sums, max(self.compiling, other.compiling), max(self.peak, other.peak))


class Run(NamedTuple):
    """A model that has forgotten, and at what cost."""

    model: Model
    params: Params
    cost: Cost


def retain_of(problem: Problem, regime: str) -> list[data.Encoded]:
    """The retain examples that a regime allows, drawn once by the problem's seed."""
    kept, share = problem.kept, REGIMES[regime]
    if share == 1.0:
        return kept
    count = round(share * len(kept))
    rows = np.random.default_rng([problem.seed, 5]).choice(len(kept), count, replace=False)
    return [kept[row] for row in sorted(rows)]


def method_of(candidate: Candidate, options: Options, problem: Problem, regime: str) -> Method:
    """The recipe with a trial's options, what the regime asks for, and what the problem knows.

    A learning rate is left to the state of the optimiser where that is possible: trials then share a program.
    """
    chosen = candidate.fixed | options | ((candidate.without or {}) if regime == "none" else {})
    takes = inspect.signature(candidate.make).parameters
    if "optimizer" in takes and "learning_rate" in chosen:
        chosen.pop("learning_rate")
        chosen["optimizer"] = ADAMW
    share = len(problem.sets["forget"]) / (len(problem.sets["forget"]) + len(problem.kept))
    if "forget_share" in takes:
        chosen["forget_share"] = share
    if candidate.stored:
        chosen["factors"] = str(problem.softened if candidate.softened else problem.factors)
        if "share" in takes:
            chosen["share"] = share
    return _made(candidate.make, tuple(chosen.items()))


@lru_cache(maxsize=32)
def _made(make: Callable[..., Method], options: tuple) -> Method:
    return make(**dict(options))._replace(certify=False)


def at_once(candidate: Candidate, options: Options, problem: Problem, regime: str) -> Run:
    """The whole forget set as one request."""
    everything = problem.sets["forget"]
    return _forget(candidate, options, problem, regime, problem.model, problem.before, everything, 1, candidate.steps)


def in_a_row(candidate: Candidate, options: Options, problem: Problem, regime: str) -> Iterator[Run]:
    """The forget set as ten requests, one after the other, with a quarter of the steps each; yields the run so far.

    Every request starts from the model that the last one left, with the references of that model. What a candidate
    adds to the model (adapters, unlearning layers) is merged or kept, and trained on.
    """
    model, params, cost = problem.model, problem.before, Cost()
    for number, rows in enumerate(problem.requests):
        request = [problem.sets["forget"][row] for row in rows]
        steps = -(-candidate.steps // SHARE_OF_STEPS)
        run = _forget(candidate, options, problem, regime, model, params, request, number, steps)
        model, params, cost = run.model, run.params, cost.plus(run.cost)
        yield Run(model, params, cost)


def _forget(
    candidate: Candidate,
    options: Options,
    problem: Problem,
    regime: str,
    model: Model,
    params: Params,
    forget: list[data.Encoded],
    number: int,
    most: int,
) -> Run:
    method, retain = method_of(candidate, options, problem, regime), retain_of(problem, regime)
    model, params, select = _added(candidate, model, params, forget, retain, number)
    stored = _answers(method, model, params, problem, forget, retain)
    kept = None if method.factors is None else curvature.load(method.factors, params)
    state = init(method, model, jax.tree.map(jnp.copy, params), key=jax.random.key(number), trainable=select)
    if "learning_rate" in options:
        state = state._replace(opt_state=_with_rate(state.opt_state, options["learning_rate"]))
    # An anchor belongs where its curvature was taken, however many requests have moved the model since.
    state = state._replace(opt_state=_with(state.opt_state, "start", problem.before))
    batch_size, retain_size = min(candidate.rows[0], len(forget)), min(candidate.rows[1], len(retain))
    pairs = data.pair(forget, retain, batch_size, retain_size=retain_size, seed=problem.seed + number, epochs=most)
    steps, products, seconds = 0, 0, 0.0
    program = compiling = None
    for one, _ in zip(pairs, range(most), strict=False):
        batch = jax.device_put(stored.complete(one)._replace(curvature=kept))
        if program is None:
            program, compiling = _program(method, model, state, batch)
        start = time.process_time()
        state, info = jax.block_until_ready(program(state, batch))
        seconds += time.process_time() - start
        steps += 1
        products += _products(info)
        if candidate.ascends and mean_nll(model, state.whole(), forget) >= problem.unseen_nll:
            break
    cost = Cost(steps, steps * candidate.gradients, products, seconds, compiling, _peak(program))
    params = state.whole()
    if candidate.trains == "lora":
        model, params = models.merge_lora(model, params)
    return Run(model, params, cost)


def _added(candidate: Candidate, model: Model, params: Params, forget: list, retain: list, number: int):
    """The model with what the candidate trains, and which parameters those are."""
    if candidate.trains == "lora":
        return choose(LORA, model, params, forget, retain, seed=number, mesh=None)
    if candidate.trains == "layers":
        if model.source.unlearning_rank is None:
            model, params = models.add_unlearning_layers(model, params, UNLEARNING_RANK, jax.random.key(number))
        return model, params, models.is_unlearning_layer
    return model, params, None


_ANSWERS: dict[Any, Stored] = {}


def _answers(method: Method, model: Model, params: Params, problem: Problem, forget: list, retain: list) -> Stored:
    """`answers_before`, of the model before any request from memory: trials of a method ask the same."""
    if params is not problem.before or "retain_hidden" in method.needs:  # whose layer is the method's own
        return answers_before(method, model, params, problem, forget, retain)
    asked = len(retain) if any(name.startswith("retain") for name in method.needs) else 0
    key = (problem.name, problem.seed, len(forget), asked, method.needs, method.alternative)
    if key not in _ANSWERS:
        if len(_ANSWERS) > 4:
            _ANSWERS.clear()
        _ANSWERS[key] = answers_before(method, model, params, problem, forget, retain)
    return _ANSWERS[key]


def answers_before(
    method: Method, model: Model, params: Params, problem: Problem, forget: list, retain: list
) -> Stored:
    """What the model says before the request, and the other answers the method asks for."""

    def encode(records: list[data.Record]) -> list[data.Encoded]:
        return data.encode(records, problem.tokenizer, max_length=problem.context, truncate=True)

    records = [one.record for one in forget]
    makers = {
        "given": lambda: encode(given(records)),
        "refusal": lambda: encode(refused(_without_own(records), seed=problem.seed)),
        "mismatched": lambda: encode(mismatched(records, seed=problem.seed)),
        "sampled": lambda: sampled(
            model, params, forget, problem.tokenizer, max_length=problem.context, seed=problem.seed
        ),
    }
    answers = makers[method.alternative]() if method.alternative else None
    kept = None
    if "retain_alternative" in method.needs:
        kept = encode(refused([one.record for one in retain], seed=problem.seed + 1))
    asked = broken = None
    if "counterfactual_top" in method.needs:
        asked = prompts(problem, forget)
        broken = data.corrupted(asked, problem.tokenizer, rate=Unlearn.corrupt, seed=problem.seed)
    return store(
        method, model, params, forget, retain,
        prompts=asked, alternatives=Alternatives(answers, kept), top_k=TOP_K, batch_size=32,
        unseen_nll=problem.held_out_nll, corrupted=broken,
    )  # fmt: skip


def _without_own(records: list[data.Record]) -> list[data.Record]:
    """The records without the wrong answers that they bring for `dpo`, which a refusal would give way to."""
    return [replace(one, raw={key: value for key, value in one.raw.items() if key != ALTERNATIVE}) for one in records]


def _with_rate(opt_state: Any, rate: float) -> Any:
    """The state of an optimiser that holds its learning rate, with another one; any other state as it is."""
    return _with(opt_state, "learning_rate", jnp.float32(rate))


def _with(opt_state: Any, name: str, value: Any) -> Any:
    """The state with another value in the field `name`, if there is one."""
    if not optax.tree_utils.tree_get_all_with_path(opt_state, name):
        return opt_state
    return optax.tree_utils.tree_set(opt_state, **{name: jax.tree.map(jnp.copy, value)})


_PROGRAMS: dict[Any, Any] = {}


def _program(method: Method, model: Model, state: Any, batch: Any) -> tuple[Any, float]:
    """The compiled step, and what compiling it took; requests and trials of one shape share it."""
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), (state, batch))
    key = (method, model, str(shapes))
    if key not in _PROGRAMS:
        if len(_PROGRAMS) > 4:
            _PROGRAMS.clear()
        step = jax.jit(lambda state, batch: unlearn_step(method, model, state, batch), donate_argnums=0)
        start = time.process_time()
        program = step.lower(state, batch).compile()
        _PROGRAMS[key] = program, time.process_time() - start
    return _PROGRAMS[key]


def _products(info: Any) -> int:
    return 0 if info.curvature is None else int(info.curvature.solve.steps)


def _peak(program: Any) -> int:
    used = program.memory_analysis()
    kept = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return int(kept + used.temp_size_in_bytes)
