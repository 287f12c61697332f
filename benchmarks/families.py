"""What works for each model family, measured against torch transformers, as the table of the README.

    python benchmarks/families.py            # prints the table
    python benchmarks/families.py --write    # and puts it between the markers of README.md

Each row is a tiny random model of `family_models.py`. Errors are largest absolute differences from torch in float32:
of logits (padded on the right, and on the left where generation pads), of gradients of the mean next-token loss, and
of every tensor of a saved model that torch loads again. The Hessian-vector product is compared with a central
difference of gradients, as a share of its norm. Forms are how a checkpoint may be stored: with the head tied to the
embedding or not, in one file of float32, in several of bfloat16, or in several of both; a form counts if it computes
what torch computes and is saved again with every tensor bit for bit as it was.
"""

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Optimising what runs for milliseconds takes minutes.
    FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from family_models import FAMILIES, Family, built, tokens, torch_logits, torch_model
from safetensors.numpy import load_file

from jaxunlearn import models, sharding, tree
from jaxunlearn.curvature import combine, partition

README = Path(__file__).resolve().parents[1] / "README.md"
MARKERS = ("<!-- families: written by benchmarks/families.py -->", "<!-- /families -->")
HEAD = (
    "| family | stored forms | logits | gradient | HVP | loss, a LoRA step on 8 devices | saved, loaded by torch | "
    "greedy tokens equal to torch |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)
NEW_TOKENS = 64
PROMPTS = [
    [5, 9, 33, 12, 7, 41, 8, 22, 60, 3, 17, 29, 30],
    [4, 4, 51, 9, 9, 31, 20, 14, 11, 6, 45, 3, 58, 13],
    [50] * 13,
]
FORMS = [(tied, kind) for tied in (True, False) for kind in ("float32", "bfloat16", "mixed")]
REAL = np.array([[1] * 20, [1] * 13 + [0] * 7])  # the second row is padded on the right


class Derivatives(NamedTuple):
    """Largest differences of logits and gradients from torch, the size of the latter, and the error of the product."""

    logits: float
    gradient: float
    largest_gradient: float
    product: float


def derivatives(family: Family, folder: Path) -> Derivatives:
    """Logits, gradient and Hessian-vector product of the mean loss over real tokens."""
    ids = tokens(REAL.shape[1])
    expected = torch_logits(family.torch, ids, REAL)
    chosen = torch.log_softmax(expected[:, :-1], -1).gather(-1, torch.tensor(ids[:, 1:, None], dtype=torch.long))
    weights = torch.tensor(REAL[:, 1:])
    (-(chosen[..., 0] * weights).sum() / weights.sum()).backward()

    def loss(params: Any) -> tuple[Any, Any]:
        logits = family.model.logits(params, ids)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(ids)[:, 1:, None], -1)[..., 0]
        return -jnp.sum(chosen * REAL[:, 1:]) / REAL[:, 1:].sum(), logits

    @jax.jit
    def orders(params: Any, v: Any) -> tuple[Any, Any, Any]:
        gradient, product, logits = jax.jvp(jax.grad(loss, has_aux=True), (params,), (v,), has_aux=True)
        return logits, gradient, product

    # On the host: on the device every operation on every shape would be a program to compile.
    params = jax.device_get(family.params)
    draw = np.random.default_rng(0)
    v = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), params)
    size = _norm(v)
    v = jax.tree.map(lambda leaf: leaf / size, v)
    logits, gradient, product = jax.device_get(orders(params, v))
    step = 1e-3 if family.model.source.config.hidden_act == "relu" else 1e-2  # kinks are to be missed
    moved = [jax.tree.map(lambda leaf, one, by=by: leaf + by * one, params, v) for by in (step, -step)]
    ends = [jax.device_get(orders(one, v)[1]) for one in moved]
    missed = jax.tree.map(lambda above, below, exact: (above - below) / (2 * step) - exact, *ends, product)

    models.save(folder, family.model, gradient)  # a gradient is laid out and named like the weights
    ours = load_file(folder / "model.safetensors")
    theirs = {name: weight.grad.numpy() for name, weight in family.torch.named_parameters()}
    if "embed_out.weight" in ours:
        theirs["embed_out.weight"] = theirs.pop("lm_head.weight")
    assert ours.keys() == theirs.keys()
    return Derivatives(
        float(np.abs((logits - expected.detach().numpy())[REAL > 0]).max()),
        max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours),
        max(float(np.abs(grad).max()) for grad in theirs.values()),
        _norm(missed) / _norm(product),
    )


def _norm(leaves: Any) -> float:
    return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(leaves)))


def round_trip(family: Family, folder: Path) -> tuple[float, float]:
    """Largest difference of any tensor, and of logits, of a model saved in several files and loaded by torch."""
    models.save(folder, family.model, family.params, max_shard_size=20_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    before, after = family.torch.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    with torch.no_grad():
        logits = [torch_logits(module, tokens()) for module in (family.torch, again)]
    return (
        max(float((before[name].double() - after[name].double()).abs().max()) for name in before),
        float((logits[0] - logits[1]).abs().max()),
    )


def left_padded(family: Family) -> float:
    """Largest difference of the logits after prompts that are padded on the left, as generation pads them."""
    ids, mask = _left_padded()

    def last(module: Any, ids: Any, padding: Any) -> Any:
        return module.extend(ids, module.empty_cache(padding, ids.shape[1]))[0]

    decoder = family.model.source
    run = jax.jit(lambda *args: decoder.run(last, *args, out_axes=("batch", None)))
    ours = run(family.params, ids.astype(np.int32), (mask == 0).sum(1).astype(np.int32))
    with torch.no_grad():
        return float(np.abs(np.asarray(ours) - torch_logits(family.torch, ids, mask)[:, -1].numpy()).max())


def _left_padded() -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, PROMPTS))
    rows = [
        ([0] * (width - len(prompt)) + prompt, [0] * (width - len(prompt)) + [1] * len(prompt)) for prompt in PROMPTS
    ]
    ids, mask = zip(*rows, strict=True)
    return np.array(ids), np.array(mask)


def forms(case: str, folder: Path) -> dict[tuple[bool, str], float]:
    """Largest difference of logits from torch for each form; infinite where a tensor that is saved again differs."""
    return {(tied, kind): _form(case, tied, kind, folder / f"{tied} {kind}") for tied, kind in FORMS}


def _form(case: str, tied: bool, kind: str, folder: Path) -> float:
    module = torch_model(case, tie_word_embeddings=tied)
    for name, weight in module.named_parameters():
        # In "mixed", vectors and the matrices of one layer are wider than the rest.
        if kind == "bfloat16" or (kind == "mixed" and weight.ndim > 1 and ".0." not in name):
            weight.data = weight.data.bfloat16()
    size, other = (10**9, 20_000) if kind == "float32" else (20_000, 10**9)
    module.save_pretrained(folder / "torch", max_shard_size=size)
    module.float()
    models.save(folder / "ours", *models.load(folder / "torch"), max_shard_size=other)
    before, after = (_tensors(folder / name) for name in ("torch", "ours"))
    if before.keys() != after.keys() or any(
        before[name].dtype != after[name].dtype or before[name].tobytes() != after[name].tobytes() for name in before
    ):
        return math.inf
    model, params = models.load(folder / "ours", dtype="float32")
    with torch.no_grad():
        expected = torch_logits(module, tokens()).numpy()
    return float(np.abs(np.asarray(jax.jit(model.logits)(params, tokens())) - expected).max())


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def greedy(family: Family) -> tuple[list[list[int]], list[list[int]]]:
    """Continuations of a batch padded on the left, ours and torch's."""
    ours = models.generate(family.model, family.params, PROMPTS, max_new_tokens=NEW_TOKENS)
    ids, mask = map(torch.tensor, _left_padded())
    out = family.torch.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    return ours, out[:, ids.shape[1] :].tolist()


def low_rank_step(family: Family) -> tuple[float, float, float]:
    """On eight devices: how far untrained adapters change logits, and the loss before and after a step."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    model, params = models.load(family.folder, mesh=mesh)
    model, params = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    adapters, frozen = partition(params, models.is_lora)
    ids = np.tile(tokens(), (2, 1))

    def loss(adapters: Any, ids: Any) -> tuple[Any, Any]:
        logits = model.logits(combine(adapters, frozen), ids)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
        return -jnp.mean(chosen), logits

    @jax.jit
    def step(adapters: Any, ids: Any) -> tuple[Any, Any, Any]:
        (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(adapters, ids)
        return value, logits, tree.axpy(-0.5, gradient, adapters)

    placed = sharding.shard_batch(ids, mesh)
    before, logits, adapters = step(adapters, placed)
    with torch.no_grad():
        changed = np.abs(np.asarray(logits) - torch_logits(family.torch, ids).numpy()).max()
    return float(changed), float(before), float(step(adapters, placed)[0])


def label(case: str) -> str:
    """What the first column calls a family."""
    kind, *rest = case.split(",")
    return ",".join([f"`{kind}`", *rest])


def row(case: str) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        family = built(case, folder / "torch")
        found = derivatives(family, folder / "gradient")
        padded = left_padded(family)
        stored = forms(case, folder / "forms")
        tensors, logits = round_trip(family, folder / "saved")
        ours, theirs = greedy(family)
        changed, before, after = low_rank_step(family)
    same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
    cells = (
        label(case),
        f"{sum(error < 1e-4 for error in stored.values())} of {len(stored)}",
        f"{max(found.logits, padded):.0e}",
        f"{found.gradient:.0e}",
        f"{found.product:.0e}",
        f"{before:.2f} to {after:.2f}" if after < before and changed < 1e-4 else "fails",
        f"{max(tensors, logits):.0f}" if max(tensors, logits) == 0 else f"{max(tensors, logits):.0e}",
        f"{same} of {sum(map(len, theirs))}",
    )
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The whole table, in Markdown; its rows are printed as they are measured."""
    lines = list(HEAD)
    for case in FAMILIES:
        lines.append(row(case))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put it between the markers of README.md")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    text = table()
    if settings.write:
        before, rest = README.read_text(encoding="utf-8").split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        README.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
