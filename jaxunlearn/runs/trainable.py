"""What a run trains: all weights, the last layers, or low-rank adapters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax

from jaxunlearn import models
from jaxunlearn.curvature.subset import Select
from jaxunlearn.data import Encoded, batches
from jaxunlearn.models.quantised import check_bits
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.settings import Trainable
from jaxunlearn.types import Model, Params

EXAMPLES = 64  # enough to weigh columns of a projection; each costs a gradient


class Chosen(NamedTuple):
    """A model, its parameters, and which of them are trained (None for all)."""

    model: Model
    params: Params
    select: Select | None


def check(settings: Trainable, layers: int) -> None:
    """Raises ValueError for settings that contradict each other or the model."""
    if settings.lora_rank < 0:
        raise ValueError(f"--lora-rank {settings.lora_rank}: give a positive rank, or 0 to train the weights")
    if settings.train_last is not None and not 1 <= settings.train_last <= layers:
        raise ValueError(f"--train-last {settings.train_last}: the model has {layers} layers; use 1 to {layers}")
    if settings.lora_rank and settings.train_last is not None:
        raise ValueError("--lora-rank trains adapters and --train-last trains layers: give one of the two")
    if not settings.lora_rank and (settings.lora_init != "zero" or settings.lora_targets):
        raise ValueError("--lora-init and --lora-targets say how adapters are made: give --lora-rank as well")
    if settings.lora_rank:
        lora_of(settings)
    check_freezing(settings.freeze_bits, settings.lora_rank)
    if settings.freeze_bits is not None and settings.lora_init != "zero":
        raise ValueError(f"--lora-init {settings.lora_init} cuts adapters out of the weights: leave out --freeze-bits")


def check_freezing(freeze_bits: int | None, lora_rank: int) -> None:
    """Raises ValueError for bits that weights are not frozen in, or without adapters to correct them."""
    check_bits(freeze_bits, "--freeze-bits ")
    if freeze_bits is not None and not lora_rank:
        raise ValueError(f"--freeze-bits {freeze_bits} is for what adapters correct: give --lora-rank as well")


def choose(
    settings: Trainable,
    model: Model,
    params: Params,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    *,
    seed: int,
    mesh: jax.sharding.Mesh | None,
) -> Chosen:
    """What `settings` ask for, made from a loaded decoder."""
    layers = model.source.config.num_hidden_layers
    if settings.lora_rank:
        lora, key = lora_of(settings), jax.random.key(seed)
        if settings.lora_init == "zero":
            return Chosen(*models.add_lora(model, params, lora, key), models.is_lora)
        if not retain:
            raise ValueError(f"--lora-init {settings.lora_init} weighs weights by what is kept: give --retain as well")
        make = {"fila": models.fila, "vila": models.vila}[settings.lora_init]
        some = (part[:EXAMPLES] for part in (forget, retain))
        parts = (next(batches(part, len(part), shuffle=False)).on(mesh) for part in some)
        return Chosen(*make(model, params, lora, *parts, key), models.is_lora)
    if settings.train_last == layers:
        return Chosen(model, params, ("layers",))
    if settings.train_last is not None:
        cut = models.split_layers(params, (layers - settings.train_last, settings.train_last))
        return Chosen(model, cut, ("layers", "1"))
    return Chosen(model, params, None)


def lora_of(settings: Trainable) -> models.LoRA:
    """The adapters that `settings` ask for."""
    lora = models.LoRA(settings.lora_rank)
    with of_flag("--lora-alpha"):
        lora = replace(lora, alpha=settings.lora_alpha)
    with of_flag("--lora-targets"):
        return replace(lora, targets=settings.lora_targets or models.PROJECTIONS)
