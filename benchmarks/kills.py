"""Does a run that is killed outright end as if nothing had happened? `kill -9` at random moments, then `--resume`.

Four kinds of work on a tiny model, each in processes of its own: fine-tuning, unlearning by Gauss-Newton steps with
conjugate gradients, one streamed Newton step whose solve is driven from the host, and evaluation. Each is first left
alone, and the hash of what it writes is kept. Then it is started, killed at a random moment, gone on with, killed
again, until it gets to its end before its time; its output must have the same hash. A third of the kills fall anywhere
between the start of the process and the end of the work, two thirds after the first thing that this process saved.
Saving after every step puts many of them into the writing of a checkpoint.

    python benchmarks/kills.py                  # 30 kills
    python benchmarks/kills.py --kills 8 --only "streamed Newton" --seed 3
"""

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tiny
from measure import markdown, where

# Compilation is most of the time of a tiny run, and what is compiled does not matter here.
XLA = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


class Work(NamedTuple):
    """A command, what it writes, and where it keeps what it needs to go on."""

    name: str
    command: list[str]
    out: Path
    partial: Path

    def digest(self) -> str:
        """Of the weights, or of the file."""
        files = [self.out] if self.out.is_file() else sorted(self.out.glob("*.safetensors"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def clear(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        shutil.rmtree(self.out) if self.out.is_dir() else self.out.unlink(missing_ok=True)


class Fate(NamedTuple):
    """What became of a kind of work.

    Attributes:
        kills: processes killed.
        fresh: of these, before the process had saved anything of its own.
        torn: kills that left a checkpoint half-written.
        ends: runs that got to their end.
        equal: of these, with the same bits.
        seconds: of the run that was left alone.
    """

    kills: int
    fresh: int
    torn: int
    ends: int
    equal: int
    seconds: float


def works(folder: Path) -> list[Work]:
    base, forget, retain = (str(folder / name) for name in ("base", "forget.jsonl", "retain.jsonl"))
    target, forgotten, stepped = folder / "fine-tuning", folder / "unlearning", folder / "newton"
    command = [sys.executable, "-m", "jaxunlearn"]
    every = ["--checkpoint-every", "1", "--resume"]
    tune = ["finetune", "--model", base, "--data", forget, "--data", retain]
    tune += ["--epochs", "30", "--learning-rate", "1e-2"]
    unlearn = ["unlearn", "--model", str(target), "--forget", forget, "--retain", retain, "--steps", "25"]
    unlearn += ["--method", "counterfactual_matching", "--substitutes", "4", "--option", "cg_steps=3"]
    newton = ["unlearn", "--model", base, "--forget", forget, "--retain", retain, "--method", "gauss_newton_ascent"]
    newton += ["--stream-retain", "--batch-size", "2", "--retain-size", "2", "--option", "damping=1e-4"]
    # Left to its products: the kills want something to hit.
    newton += ["--option", "cg_steps=30", "--option", "rtol=0"]
    evaluate = ["evaluate", "--model", str(forgotten), "--reference-model", base, "--generate"]
    evaluate += ["--forget", forget, "--retain", retain, "--resume"]

    def made(name: str, rest: list[str], out: Path) -> Work:
        return Work(name, rest, out, _partial(out))

    result = folder / "evaluation.json"
    return [
        made("fine-tuning", [*command, *tune, "--out", str(target), *every], target),
        made("unlearning, CG", [*command, *unlearn, "--out", str(forgotten), *every], forgotten),
        made("streamed Newton, CG on the host", [*command, *newton, "--out", str(stepped), *every], stepped),
        made("evaluation", [*command, *evaluate, "--out", str(result)], result),
    ]


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def start(work: Work, log: Path) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {XLA}", "JAX_PLATFORMS": "cpu"}
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(work.command, env=environment, stdout=file, stderr=file)


def finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait() != 0:
        sys.exit(f"a run failed with code {process.returncode}:\n{log.read_text(encoding='utf-8')[-3000:]}")


def saved(work: Work) -> set[str]:
    """What stands in the work folder."""
    return {f"{path}:{path.stat().st_mtime_ns}" for path in work.partial.glob("*/*") if path.exists()}


def harass(work: Work, kills: int, draw: random.Random, log: Path) -> Fate:
    """Kill the work that many times, and see it through to its end in between and afterwards."""
    begun = time.monotonic()
    process, first = start(work, log), None
    while process.poll() is None:
        if first is None and saved(work):
            first = time.monotonic()
        time.sleep(0.01)
    finish(process, log)
    seconds = time.monotonic() - begun
    loop = time.monotonic() - (begun if first is None else first)
    expected = work.digest()
    work.clear()
    done = fresh = torn = ends = equal = 0
    while done < kills:
        before, process = saved(work), start(work, log)
        late = draw.random() > 1 / 3
        while late and process.poll() is None and not saved(work) - before:
            time.sleep(0.005)
        deadline = time.monotonic() + draw.uniform(0, loop if late else seconds)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None:
            process.kill()
            process.wait()
            done += 1
            fresh += not saved(work) - before
            torn += any("tmp" in path.name or path.suffix == ".part" for path in work.partial.rglob("*"))
            left = sorted(path.name for path in work.partial.glob("*/*"))
            print(f"{work.name}: kill {done} of {kills}, leaves {', '.join(left) or 'nothing'}", flush=True)
        else:
            finish(process, log)
            ends, equal = ends + 1, equal + (work.digest() == expected)
            print(f"{work.name}: {equal} of {ends} ends with the same bits", flush=True)
            work.clear()
    finish(start(work, log), log)
    ends, equal = ends + 1, equal + (work.digest() == expected)
    print(f"{work.name}: {equal} of {ends} ends with the same bits", flush=True)
    if work.partial.exists():
        sys.exit(f"{work.partial} was left behind")
    return Fate(done, fresh, torn, ends, equal, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds of work whose name holds this text")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="kills.") as name:
        folder, log = Path(name), Path(name) / "log.txt"
        tiny.write(folder)
        every = works(folder)
        # Each kind of work reads what the one before wrote.
        chosen = [work for work in every if args.only is None or args.only in work.name]
        for work in every[: every.index(chosen[-1]) + 1]:
            if work in chosen:
                share = args.kills // len(chosen) + (chosen.index(work) < args.kills % len(chosen))
                fate = harass(work, share, draw, log)
                rows.append([work.name, *map(str, fate[:5]), f"{fate.seconds:.0f}"])
            else:
                finish(start(work, log), log)
    print(f"\n{where()}\n")
    header = ["work", "kills", "before it saved", "writing", "ends", "same bits", "seconds if left alone"]
    print(markdown(header, rows))
    if any(row[4] != row[5] for row in rows):
        sys.exit("a run that was killed ended in other bits")


if __name__ == "__main__":
    main()
