"""How long a checkpoint takes to load, against reading its files and nothing else, and the memory it takes.

    python benchmarks/loading.py                 # a random checkpoint of 1.3 GB, in a temporary folder
    python benchmarks/loading.py --layers 4      # a smaller one

The checkpoint is a Llama of width 2048 in bfloat16, in files of 500 MB. "Read" reads every file into fresh memory with
`numpy.fromfile`, one after the other; "load" is `models.load`, which also checks every number for NaN, transposes every
matrix and stacks the layers; "save" is `models.save`, which undoes that. Each runs in a process of its own. Warm: the
files are in the page cache. Cold: they were dropped from it (`posix_fadvise`) just before. Memory is the largest
resident set of the process above that before the call, beside the size of the result; on CPUs the result is part of it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np

SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}


def make(folder: Path, layers: int) -> None:
    """A checkpoint of random bfloat16 numbers, written tensor by tensor."""
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    from jaxunlearn.models import DecoderConfig, param_specs

    config = DecoderConfig(**SIZES, num_hidden_layers=layers)
    random, files, shard, size = np.random.default_rng(0), {}, {}, 0
    tensors = [(name, spec.hf_shape) for spec in param_specs(config) for name in spec.hf_names]

    def write() -> None:
        file = f"model-{len(set(files.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in tensors:
        shard[name] = random.standard_normal(shape, np.float32).astype(jnp.bfloat16)
        size += shard[name].nbytes
        if size > 500e6:
            write()
            size = 0
    if shard:
        write()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(config.to_hf("bfloat16").to_json_string())


def drop(folder: Path) -> None:
    """Forget the pages of the files."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def work(what: str, folder: Path, devices: int) -> None:
    """One measurement, in this process; prints seconds, bytes above those before, and bytes of the result."""
    import jax

    from jaxunlearn import models, sharding

    mesh = None if devices == 1 else sharding.make_mesh(fsdp=devices)
    jax.block_until_ready(jax.numpy.zeros(1))
    models.read_config(folder)  # imports transformers, which takes longer than a checkpoint
    made = models.load(folder) if what == "save" else None
    before = resident_now()
    start = time.perf_counter()
    if what == "read":
        result = [np.fromfile(file, np.uint8) for file in sorted(folder.glob("*.safetensors"))]
    elif what == "load":
        result = jax.block_until_ready(models.load(folder, mesh=mesh)[1])
    else:
        result = models.save(folder / "saved", *made, max_shard_size="500MB")
    seconds = time.perf_counter() - start
    size = 0 if what == "save" else sum(leaf.nbytes for leaf in jax.tree.leaves(result))
    print(json.dumps({"seconds": seconds, "above": resident() - before, "result": size}))


def resident() -> int:
    """The largest resident set so far; an import may have been larger than what is left of it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measured(what: str, folder: Path, cold: bool, devices: int = 1) -> dict:
    """`work` in a process of its own."""
    if cold:
        drop(folder)
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, "--work", what, "--folder", str(folder), "--devices", str(devices)]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    if what == "save":
        subprocess.run(["rm", "-r", str(folder / "saved")], check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=10, help="of 122 MB each")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, of which the median is shown")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.work:
        work(settings.work, settings.folder, settings.devices)
        return
    rows = []
    print(measure.where())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, settings.layers)
        files = list(folder.glob("*.safetensors"))
        total = sum(file.stat().st_size for file in files)
        layer = sum(2048 * n for n in (2048, 2048, 512, 512, 8192, 8192, 8192)) * 2
        print(f"{total / 1e9:.2f} GB in {len(files)} files, a layer {layer / 1e6:.0f} MB\n")
        runs = [(what, cold, 1) for cold in (False, True) for what in ("read", "load")]
        runs += [("load", False, 8), ("save", False, 1)]
        found = {run: [] for run in runs}
        for _ in range(settings.rounds):
            for run in runs:
                what, cold, devices = run
                found[run].append(measured(what, folder, cold, devices))
    for (what, cold, devices), seen in found.items():
        seconds = statistics.median(one["seconds"] for one in seen)
        reading = statistics.median(one["seconds"] for one in found["read", cold, 1])
        above = max(one["above"] - one["result"] for one in seen)
        rows.append(
            (
                what + (f", {devices} devices" if devices > 1 else ""),
                "cold" if cold else "warm",
                f"{seconds:.2f}",
                f"{seconds / reading:.2f}",
                f"{above / 1e6:.0f}",
            )
        )
    print(measure.markdown(("", "cache", "seconds", "of reading", "MB above the result"), rows))


if __name__ == "__main__":
    main()
