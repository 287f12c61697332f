"""Forgetting at inference time: several models that share a vocabulary, their logits combined place by place.

Nothing of the model that is asked changes; what it would say is corrected by what others say about the same text.

    whp       z_base - alpha relu(z_reinforced - z_base)          reinforced: trained further on the forget set
    offset    z_big + w (z_small_unlearned - z_small)             a pair of small models stands in for a big one
    uld       z_base + w z_assistant    where log p_base >= max log p_base + log r      assistant: recalls only forget

Each is a `Model` of its own whose parameters are the tuple of those of its parts, so that it is scored like any other,
and generates text with one cache a part where all of them are decoders. A part may be any `Model`: for a black box, one
whose `logits` asks somebody else and whose parameters are `()`.

References: Eldan and Russinovich, "Who's Harry Potter? Approximate unlearning in LLMs", 2023; Huang et al., "Offset
unlearning for large language models", TMLR 2025 (delta-unlearning); Ji et al., "Reversing the forget-retain objectives:
an efficient LLM unlearning framework from logit difference", NeurIPS 2024 (ULD).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.models.functional import Decoder
from jaxunlearn.types import Model, Params

DROPPED = -1e3  # below any logit, and finite, so that the NLL of a dropped token remains a number


class Limits(NamedTuple):
    """What every part of a combination can take.

    Attributes:
        vocab_size: the vocabulary they share.
        max_position_embeddings: the shortest of their contexts.
        switch_lengths: where any of them changes its rotary frequencies.
    """

    vocab_size: int
    max_position_embeddings: int
    switch_lengths: tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """One function of a combination, equal to the same function of an equal one (bound methods are not)."""

    source: Any
    name: str

    def __call__(self, params: Params, *args: Any) -> Array:
        return getattr(self.source, self.name)(params, *args)


@dataclass(frozen=True)
class Contrast:
    """A rule over the logits of several models, with the functions of a decoder.

    Attributes:
        rule: `(z_1, z_2, ...) -> z`, elementwise in all axes but the last.
        parts: the models.
    """

    rule: Callable[..., Array]
    parts: tuple[Model, ...]

    @property
    def config(self) -> Limits:
        """Limits of the parts, which must all be decoders."""
        configs = [part.source.config for part in self.parts]
        context = min(c.max_position_embeddings for c in configs)
        return Limits(configs[0].vocab_size, context, tuple(n for c in configs for n in c.switch_lengths))

    def logits(self, params: tuple[Params, ...], tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """The combined logits at every place."""
        pairs = zip(self.parts, params, strict=True)
        return self._combine([part.logits(p, tokens) for part, p in pairs])

    def logits_at(
        self, params: tuple[Params, ...], tokens: Int[Array, "B T"], positions: Int[Array, "B P"]
    ) -> Float[Array, "B P V"]:
        """The same at `positions` only."""
        pairs = zip(self.parts, params, strict=True)
        return self._combine([logits_at(part, p, tokens, positions) for part, p in pairs])

    def run(self, function: Callable, params: tuple[Params, ...], *batch: Array, out_axes: tuple) -> Array:
        """`function(module, *batch)`, module the combination of the parts' modules; see `Decoder.run`."""

        def enter(modules: tuple, params: tuple[Params, ...], batch: tuple) -> Array:
            if not params:
                return function(_Modules(self, modules), *batch)
            # The parameters of the others go in as data: on an explicit mesh a part's island types what it is given.
            return self.parts[len(modules)].source.run(
                lambda module, *data: enter((*modules, module), data[-1], data[:-1]),
                params[0], *batch, params[1:], out_axes=out_axes,
            )  # fmt: skip

        return enter((), params, batch)

    def _combine(self, logits: list[Array]) -> Array:
        if len({z.shape[-1] for z in logits}) > 1:
            raise ValueError(
                f"the models have vocabularies of {[z.shape[-1] for z in logits]} tokens; logits can only be combined "
                "over one and the same"
            )
        return self.rule(*(z.astype(jnp.float32) for z in logits))


class _Modules:
    """What generation asks of a module, of several at once: their caches are a tuple."""

    def __init__(self, contrast: Contrast, modules: tuple):
        self.contrast, self.modules = contrast, modules

    def empty_cache(self, padding: Int[Array, " B"], slots: int) -> tuple:
        return tuple(module.empty_cache(padding, slots) for module in self.modules)

    def extend(self, tokens: Int[Array, "B T"], caches: tuple) -> tuple[Float[Array, "B V"], tuple]:
        logits, caches = zip(*(m.extend(tokens, c) for m, c in zip(self.modules, caches, strict=True)), strict=True)
        return self.contrast._combine(list(logits)), caches


def logits_at(model: Model, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B P"]) -> Array:
    """`model.logits` at `positions`, by `model.logits_at` where there is one."""
    if model.logits_at is not None:
        return model.logits_at(params, tokens, positions)
    return jnp.take_along_axis(model.logits(params, tokens), positions[..., None], axis=1)


def as_source(source: Any) -> Model:
    """A `Model` from an object with `logits` and `logits_at`, whatever else it can do."""
    return Model(logits=Function(source, "logits"), logits_at=Function(source, "logits_at"), source=source)


def generates(source: Any) -> bool:
    """Whether `models.generate` can drive `source`: decoders, and what is made of decoders only."""
    parts = getattr(source, "parts", None)
    return isinstance(source, Decoder) if parts is None else all(generates(part.source) for part in parts)


@dataclass(frozen=True)
class WHPRule:
    """`z_base - alpha relu(z_reinforced - z_base)`."""

    alpha: float

    def __call__(self, base: Array, reinforced: Array) -> Array:
        return base - self.alpha * jax.nn.relu(reinforced - base)


@dataclass(frozen=True)
class OffsetRule:
    """`z_big + weight (z_unlearned - z_small)`."""

    weight: float

    def __call__(self, big: Array, unlearned: Array, small: Array) -> Array:
        return big + self.weight * (unlearned - small)


@dataclass(frozen=True)
class ULDRule:
    """`z_base + weight z_assistant` on the tokens that the base model takes into consideration."""

    weight: float
    ratio: float
    outside: str

    def __call__(self, base: Array, assistant: Array) -> Array:
        # Logits and log-probabilities differ by a constant, which the comparison with the largest does not see.
        considered = base >= jnp.max(base, axis=-1, keepdims=True) + math.log(self.ratio)
        return jnp.where(considered, base + self.weight * assistant, base if self.outside == "base" else DROPPED)


def whp(base: Model, reinforced: Model, *, alpha: float = 5.0) -> Model:
    """Who's Harry Potter at inference: what further training on the forget set raised is lowered.

    Args:
        base: the model.
        reinforced: the same after further training on the forget set.
        alpha: how strongly; 0 is the base model.

    Returns:
        A model with parameters `(base, reinforced)`.

    Raises:
        ValueError: for a negative `alpha`.

    Example:
        >>> model = Model(logits=lambda z, tokens: z[tokens])
        >>> z_base, z_reinforced = jnp.array([[1.0, 1.0]]), jnp.array([[3.0, 0.0]])
        >>> whp(model, model, alpha=2.0).logits((z_base, z_reinforced), jnp.array([[0]])).tolist()
        [[[-3.0, 1.0]]]
    """
    if not alpha >= 0:
        raise ValueError(f"whp(alpha={alpha}): a negative alpha would raise what is to be forgotten; give 0 or more")
    return as_source(Contrast(WHPRule(float(alpha)), (base, reinforced)))


def offset(big: Model, small_unlearned: Model, small: Model, *, weight: float = 1.0) -> Model:
    """Delta-unlearning: what unlearning did to a small model is added to a big one, whose weights nobody needs.

    Args:
        big: any model with logits over the vocabulary of the small ones; a black box has parameters `()`.
        small_unlearned: a small model after unlearning.
        small: the same before.
        weight: of the difference.

    Returns:
        A model with parameters `(big, small_unlearned, small)`.

    Example:
        >>> ask = Model(logits=lambda nothing, tokens: jnp.ones((*tokens.shape, 2)))
        >>> small = Model(logits=lambda z, tokens: z[tokens])
        >>> params = ((), jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 1.0]]))
        >>> offset(ask, small, small).logits(params, jnp.array([[0]])).tolist()
        [[[0.0, 2.0]]]
    """
    return as_source(Contrast(OffsetRule(float(weight)), (big, small_unlearned, small)))


def uld(
    base: Model,
    assistant: Model,
    *,
    weight: float = -0.8,
    ratio: float = 0.01,
    outside: Literal["base", "drop"] = "base",
) -> Model:
    """Unlearning from logit difference: an assistant that recalls the forget set and nothing else is subtracted.

    Args:
        base: the model.
        assistant: trained to recall forget and to be uniform on retain.
        weight: of the assistant; negative, to subtract.
        ratio: r, tokens with less than this share of the likeliest token's probability are not contrasted.
        outside: what becomes of those. "base" leaves their logits alone, as the published code does when it scores
            text; "drop" sets them to -1000, as it does when it writes.

    Returns:
        A model with parameters `(base, assistant)`.

    Raises:
        ValueError: for a `ratio` outside (0, 1], or an unknown `outside`.

    Example:
        >>> model = Model(logits=lambda z, tokens: z[tokens])
        >>> params = jnp.array([[2.0, 1.0, -9.0]]), jnp.array([[3.0, 0.0, 5.0]])
        >>> uld(model, model, weight=-1.0).logits(params, jnp.array([[0]])).tolist()
        [[[-1.0, 1.0, -9.0]]]
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"uld(ratio={ratio}): give a share of the largest probability, above 0 and at most 1")
    if outside not in ("base", "drop"):
        raise ValueError(f"uld(outside={outside!r}): choose 'base' or 'drop'")
    return as_source(Contrast(ULDRule(float(weight), float(ratio), outside), (base, assistant)))
