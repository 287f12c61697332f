"""One process of a run of several: `python worker.py FOLDER JOB PROCESS COUNT PORT`, its numbers to JOB-PROCESS.json.

Of 8 devices in all, each of COUNT processes has its share.
"""

import json
import os
import sys
from pathlib import Path

FOLDER, JOB, PROCESS, COUNT, PORT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={8 // COUNT} --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import jax  # noqa: E402 -- reads its environment when it is imported
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import jaxunlearn as ju  # noqa: E402
from jaxunlearn import data, methods, models, sharding, tree  # noqa: E402
from jaxunlearn.cli import main  # noqa: E402
from jaxunlearn.curvature import GaussNewton  # noqa: E402
from jaxunlearn.evals.score import score  # noqa: E402
from jaxunlearn.models import checkpoint_files  # noqa: E402
from jaxunlearn.sharding import hosts  # noqa: E402
from jaxunlearn.solvers import CG  # noqa: E402

OUT, WORLD = FOLDER / JOB, FOLDER / "world"
SETS = ["--forget", str(WORLD / "forget.jsonl"), "--retain", str(WORLD / "retain.jsonl")]
DEVICES = ["--mesh", "fsdp=-1,tensor=2", "--coordinator", f"127.0.0.1:{PORT}", "--num-processes", str(COUNT)]
DEVICES += ["--process-id", str(PROCESS)]
# Rounding of gradients that vanish would become steps of full length with Adam's usual epsilon.
METHOD = methods.grad_diff(optimizer=optax.adam(1e-2, eps=1e-2))._replace(certify=False)


def commands() -> dict:
    """A method with a CG solve, and an evaluation that writes answers, as several machines start them by hand."""
    out = str(OUT / "unlearned")
    second = ["--method", "gauss_newton_ascent", "--steps", "1", "--option", "cg_steps=3", "--stop-at-nll", "99"]
    size = ["--batch-size", "4", "--retain-size", "4"]
    assert main(["unlearn", "--model", str(WORLD / "base"), *SETS, *second, *size, "--out", out, *DEVICES]) == 0
    written = ["--generate", "--new-tokens", "4", "--out", str(OUT / "evaluation.json")]
    assert main(["evaluate", "--model", out, *SETS, *written, *DEVICES]) == 0
    return {}


def library() -> dict:
    """The pure functions: a solve, two steps of a first-order method, scores and a checkpoint; and what is read."""
    hosts.start(f"127.0.0.1:{PORT}", COUNT, PROCESS)
    read, sizes = checkpoint_files.StoredTensor.read, []
    checkpoint_files.StoredTensor.read = lambda *args: sizes.append((part := read(*args)).nbytes) or part
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    model, params = models.load(WORLD / "base", mesh=mesh, remat="none", head_rows=None)
    checkpoint_files.StoredTensor.read = read
    tokenizer = models.load_tokenizer(WORLD / "base")
    forget, retain = (data.encode(data.read(SETS[i])[:8], tokenizer, max_length=64) for i in (1, 3))
    batch = sharding.shard_batch(ju.UnlearnBatch(data.collate(forget), data.collate(retain)), mesh)
    shards = batch.retain.tokens.addressable_shards

    @jax.jit
    def solve(p, b):
        x, info = CG(4)(GaussNewton()(model, p, b).damped(0.5), tree.to_vector(p))
        return [tree.norm(leaf) for leaf in jax.tree.leaves(x)], info.residual_norms

    solution, residuals = sharding.on_host(solve(params, batch.retain))
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
    state = ju.init(METHOD, model, params, key=jax.random.key(0))
    for _ in range(2):
        state, info = step(METHOD, model, state, batch)
    scores = score(model, state.params, retain, batch_size=8, mesh=mesh)
    models.save(OUT / "stepped", model, state.params)
    return {
        "bytes": sum(sizes),
        "rows": sorted({row for shard in shards for row in range(8)[shard.index[0]]}),
        "solution": [float(x) for x in solution],
        "residuals": residuals.tolist(),
        "objective": float(info.objective),
        "scores": np.concatenate(scores.log_probs).tolist(),
    }


def flawed() -> dict:
    """NaN in a part that one process reads: every process refuses the weights, and the program ends by itself."""
    assert main(["evaluate", "--model", str(WORLD / "flawed"), *SETS[:2], *DEVICES]) == 2
    return {}


def dies() -> None:
    """The last process is killed while all compute; what becomes of the others is seen from outside."""
    hosts.start(f"127.0.0.1:{PORT}", COUNT, PROCESS, dead_after=10)
    total = jax.jit(jnp.sum)
    for turn in range(10**9):
        batch = sharding.shard_batch(np.full((8, 2), turn, np.float32), sharding.make_mesh(data=8))
        assert float(total(batch)) == 16 * turn
        if turn == 3 and PROCESS == COUNT - 1:
            os.kill(os.getpid(), 9)


OUT.mkdir(exist_ok=True)
jobs = {"one": [commands, library], "two": [commands], "four": [library], "flawed": [flawed], "dies": [dies]}
numbers = {name: value for job in jobs[JOB] for name, value in job().items()}
assert (jax.process_count(), jax.device_count()) == (COUNT, 8)
(FOLDER / f"{JOB}-{PROCESS}.json").write_text(json.dumps(numbers))
