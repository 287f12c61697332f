"""One scoring pass and one generation pass for any number of suites, then their metrics.

Texts and prompts that suites share are scored and continued once. Prompts are grouped by the length they need, so that
few shapes are compiled and none waits for one much longer.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import Progress
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.protocol import Run, Seen, Suite
from jaxunlearn.evals.result import Result, skipped
from jaxunlearn.evals.score import Scores, score

Generate = Callable[..., list[list[int]]]
_WIDTH, _FEWEST = 32, 16


def run_suites(
    suites: Sequence[Suite],
    run: Run,
    *,
    generate: Generate | None = None,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measures one model by all `suites`.

    Args:
        suites: of `build`, or any that follow the protocol.
        run: the model, and what to compare it with.
        generate: `jaxunlearn.models.generate`, or any function
            `(model, params, prompts, *, max_new_tokens, stop_ids, batch_size)`; without it nothing is generated.
        max_length: the model's context, tokens.
        progress: called with `(texts scored, texts in all)`.

    Returns:
        `{metric: measure}` with every row of every suite.

    Errors:
        ValueError: two suites of one name.
    """
    names = [suite.name for suite in suites]
    if len(set(names)) < len(names):
        raise ValueError(f"two suites share a name ({', '.join(names)}); run them one after another")
    texts = {(suite.name, key): examples for suite in suites for key, examples in suite.texts().items()}
    scored = _score(texts, run, progress)
    of = {suite.name: {key: s for (name, key), s in scored.items() if name == suite.name} for suite in suites}
    written = None
    if generate is not None:
        asked = {(s.name, key): prompts for s in suites for key, prompts in s.prompts(of[s.name]).items()}
        written = _continue(asked, run, generate, max_length)
    found: Result = {}
    for suite in suites:
        own = None if written is None else {key: texts for (name, key), texts in written.items() if name == suite.name}
        measures = suite.measure(Seen(of[suite.name], own, run))
        found |= {name: measures.get(name) or skipped(name, "its data were not given") for name in suite.rows}
    return found


def _score(
    asked: Mapping[tuple[str, str], Sequence[Encoded]], run: Run, progress: Progress | None
) -> dict[tuple[str, str], Scores]:
    texts: list[Encoded] = []
    places: dict[int, int] = {}
    for examples in asked.values():
        for example in examples:
            if id(example) not in places:
                places[id(example)] = len(texts)
                texts.append(example)
    if not texts:
        return {key: Scores([], [], [], []) for key in asked}
    found = score(run.model, run.params, texts, batch_size=run.batch_size, mesh=run.mesh, progress=progress)
    return {key: found.take([places[id(example)] for example in examples]) for key, examples in asked.items()}


def _continue(
    asked: Mapping[tuple[str, str], Prompts], run: Run, generate: Generate, max_length: int | None
) -> dict[tuple[str, str], list[list[int]]]:
    end = run.tokenizer.eos_token_id
    wanted: dict[tuple, list[int] | None] = {}
    for prompts in asked.values():
        for tokens, new in zip(prompts.tokens, prompts.new, strict=True):
            wanted[tuple(tokens), new, prompts.stop] = None
    groups: dict[tuple[int, int, bool], list[tuple]] = {}
    for key in wanted:
        tokens, new, stop = key
        groups.setdefault((_doubled(len(tokens), _WIDTH), _rounded(new, len(tokens), max_length), stop), []).append(key)
    for (_, new, stop), keys in sorted(groups.items(), key=lambda group: group[0]):
        texts = generate(
            run.model,
            run.params,
            [list(tokens) for tokens, _, _ in keys],
            max_new_tokens=new,
            stop_ids=(end,) if stop and end is not None else (),
            **_batched(generate, run.batch_size),
        )
        for key, text in zip(keys, texts, strict=True):
            wanted[key] = list(text)[: key[1]]
    return {
        name: [wanted[tuple(tokens), new, p.stop] for tokens, new in zip(p.tokens, p.new, strict=True)]
        for name, p in asked.items()
    }


def _batched(generate: Generate, batch_size: int) -> dict[str, Any]:
    """`batch_size`, for functions that take it and have not been given one."""
    parameter = inspect.signature(generate).parameters.get("batch_size")
    return {} if parameter is None or parameter.default is not None else {"batch_size": batch_size}


def _doubled(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())


def _rounded(new: int, length: int, max_length: int | None) -> int:
    """How many tokens to ask for: as few different numbers as the context allows."""
    for asked in (_doubled(new, _FEWEST), -(-new // 32) * 32, -(-new // 8) * 8):
        if max_length is None or length + asked <= max_length:
            return asked
    return new
