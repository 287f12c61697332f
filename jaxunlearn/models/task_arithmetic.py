"""Task-vector negation from checkpoint folder to checkpoint folder; see `methods.task_vector` for what it does."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxunlearn.files import refuse_folder
from jaxunlearn.models.loading import load
from jaxunlearn.models.saving import save


def negate_task_vector(
    folder: str | Path, overfit: str | Path, out: str | Path, *, scale: float = 1.0, mesh: Mesh | None = None
) -> Path:
    """Save `theta - scale (theta_overfit - theta)` to a new folder.

    Args:
        folder: checkpoint of the model that is to forget; its tokenizer goes along.
        overfit: checkpoint of the same after further training on the forget set.
        out: folder to make.
        scale: how far to go.
        mesh: devices to spread the parameters of both over.

    Returns:
        The new folder.

    Raises:
        ValueError: when `out` holds something, or the checkpoints are of different architectures.
    """
    from jaxunlearn.methods.task_vector import task_vector  # loading a checkpoint should not load every method

    refuse_folder(Path(out))
    model, params = load(folder, mesh=mesh)
    other, further = load(overfit, mesh=mesh)
    if model.source.config != other.source.config:
        raise ValueError(f"{folder} and {overfit} have different architectures; give one model and its fine-tuning")
    changed = jax.jit(task_vector)(params, further, scale=scale)
    card = (
        f"# Unlearned model\n\n{Path(folder).name} less its task vector towards {Path(overfit).name}, scale {scale}.\n"
    )
    return save(out, model, changed, card=card)
