"""One process of a run of several: `python worker.py FOLDER JOB PROCESS COUNT PORT`, its numbers to JOB-PROCESS.json.

Of 8 devices in all, each of COUNT processes has its share. Imported, it offers the same work to a process alone.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={8 // int(sys.argv[4])} --xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    # A run that goes on compiles what the run before it compiled.
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": f"{sys.argv[1]}/cache",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

import jax
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn import data, methods, models, sharding, tree
from jaxunlearn.cli import main
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.evals.score import score
from jaxunlearn.models import checkpoint_files
from jaxunlearn.runs.progress import Stage
from jaxunlearn.sharding import hosts
from jaxunlearn.solvers import CG

# Rounding of gradients that vanish would become steps of full length with Adam's usual epsilon.
METHOD = methods.grad_diff(optimizer=optax.adam(1e-2, eps=1e-2))._replace(certify=False)


class Place(NamedTuple):
    """Where a job reads and writes, and which process of how many this is."""

    folder: Path
    job: str
    process: int = 0
    count: int = 1
    port: int = 0

    @property
    def out(self) -> Path:
        return self.folder / self.job

    @property
    def sets(self) -> list[str]:
        return [f"--{name}={self.folder / 'world' / name}.jsonl" for name in ("forget", "retain")]

    def run(self, command: str, *more: str) -> int:
        """A command as several machines start it by hand, or one alone, on another mesh."""
        mesh = "data=2,fsdp=-1" if self.count == 1 else "fsdp=-1,tensor=2"
        who = ["--coordinator", f"127.0.0.1:{self.port}", "--num-processes", str(self.count), "--process-id"]
        return main([command, *more, "--mesh", mesh, *([*who, str(self.process)] if self.count > 1 else [])])

    def join(self) -> None:
        if self.count > 1:
            hosts.start(f"127.0.0.1:{self.port}", self.count, self.process, dead_after=15)


def unlearn(place: Place, out: str, *more: str) -> int:
    """Two steps with a CG solve each, evaluation between them."""
    method = ["--method", "gauss_newton_ascent", "--steps", "2", "--option", "cg_steps=3", "--stop-at-nll", "99"]
    size = ["--batch-size", "4", "--retain-size", "4", "--checkpoint-every", "1"]
    looks = ["--evaluate-every", "1", "--keep-while", "forget_nll<=99", "--evaluate-limit", "4"]
    base, target = str(place.folder / "world" / "base"), str(place.out / out)
    return place.run("unlearn", "--model", base, *place.sets, *method, *size, *looks, "--out", target, *more)


def commands(place: Place) -> dict:
    """An unlearning, and an evaluation that writes answers."""
    assert unlearn(place, "unlearned") == 0
    written = ["--generate", "--new-tokens", "4", "--out", str(place.out / "evaluation.json")]
    assert place.run("evaluate", "--model", str(place.out / "unlearned"), *place.sets, *written) == 0
    return {}


def finetune(place: Place, out: str, *more: str) -> int:
    base, target = str(place.folder / "world" / "base"), str(place.out / out)
    size = ["--epochs", "2", "--batch-size", "4", "--data", str(place.folder / "world" / "forget.jsonl")]
    looks = ["--evaluate-every", "1", "--keep-while", "retain_nll<=99", "--evaluate-limit", "4"]
    return place.run("finetune", "--model", base, *size, *looks, "--out", target, *more)


def preempted(place: Place) -> dict:
    """A fine-tuning that is left alone, and one of which the last process is asked to end; both save and go on."""
    assert finetune(place, "tuned") == 0
    with at_step(1, lambda: place.process == place.count - 1 and signal.raise_signal(signal.SIGTERM)):
        assert finetune(place, "preempted") == 75
    assert finetune(place, "preempted", "--resume") == 0
    return {}


def flawed(place: Place) -> dict:
    """NaN in a part that one process reads: every process refuses the weights, and the program ends by itself."""
    assert place.run("evaluate", "--model", str(place.folder / "world" / "flawed"), place.sets[0]) == 2
    return {}


def killed(place: Place) -> dict:
    """The last process is killed in the second step, when the first is saved; the other ends by itself."""

    def kill() -> None:
        saved = place.out / "killed.partial" / "checkpoints" / "1"
        while place.process == place.count - 1:
            if saved.is_dir():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)

    with at_step(2, kill):
        unlearn(place, "killed")
    return {}


def resumed(place: Place) -> dict:
    """The run that was killed, in the folder of its job, gone on with."""
    steps = []
    with at_step(1, lambda: steps.append(1)):
        assert unlearn(place._replace(job="two"), "killed", "--resume") == 0
    return {"steps": len(steps)}


class at_step:  # noqa: N801 -- reads as a clause
    """While entered, `do()` comes before the report of a loop's step `number`."""

    def __init__(self, number: int, do):
        self.left, self.do, self.real = number, do, Stage.advance

    def __enter__(self) -> None:
        def advance(stage: Stage, *done: int, **facts: float) -> None:
            # What stages before the loop report has no numbers of a step; what a resumed loop begins with neither.
            self.left -= bool("forget_nll" in facts or stage._name == "fine-tuning")
            if self.left == 0:
                self.do()
            self.real(stage, *done, **facts)

        Stage.advance = advance

    def __exit__(self, *_: object) -> None:
        Stage.advance = self.real


def library(place: Place) -> dict:
    """The pure functions: a solve, two steps of a first-order method, scores and a checkpoint; and what is read."""
    read, sizes = checkpoint_files.StoredTensor.read, []
    checkpoint_files.StoredTensor.read = lambda *args: sizes.append((part := read(*args)).nbytes) or part
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    model, params = models.load(place.folder / "world" / "base", mesh=mesh, remat="none", head_rows=None)
    checkpoint_files.StoredTensor.read = read
    tokenizer = models.load_tokenizer(place.folder / "world" / "base")
    forget, retain = (data.encode(data.read(one.partition("=")[2])[:8], tokenizer, max_length=64) for one in place.sets)
    batches, collated = sys.modules[data.Step.__module__], []
    collate = batches.collate
    batches.collate = lambda rows, **shape: collated.append(len(rows)) or collate(rows, **shape)
    batch = next(data.pair(forget, retain, 8)).on(mesh)
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
    batches.collate = collate
    models.save(place.out / "stepped", model, state.params)
    return {
        "bytes": sum(sizes),
        "collated": collated,
        "rows": sorted({row for shard in shards for row in range(8)[shard.index[0]]}),
        "solution": [float(x) for x in solution],
        "residuals": residuals.tolist(),
        "objective": float(info.objective),
        "scores": np.concatenate(scores.log_probs).tolist(),
    }


JOBS = {
    "one": [commands, library],
    "two": [commands, preempted, flawed, killed],
    "resumed": [resumed],
    "four": [library],
}


def work(place: Place) -> dict:
    """All of a job."""
    place.join()
    place.out.mkdir(exist_ok=True)
    found = {name: value for job in JOBS[place.job] for name, value in job(place).items()}
    assert (jax.process_count(), jax.device_count()) == (place.count, 8)
    return found


if __name__ == "__main__":
    here = Path(sys.argv[1])
    found = work(Place(here, sys.argv[2], *map(int, sys.argv[3:])))
    (here / f"{sys.argv[2]}-{sys.argv[3]}.json").write_text(json.dumps(found))
