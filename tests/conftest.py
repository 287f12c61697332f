"""Every test process sees eight CPU devices, so that each method can be run sharded next to unsharded."""

import os
import sys
from pathlib import Path

import pytest

# Optimising what runs for milliseconds takes seconds: level 0 halves the time of the suite, fusions that are not
# lowered by way of MLIR and modules compiled in one piece halve it again.
FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What the benchmarks measure with, tests check with: the same peers, the same count of FLOPs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def stories260k() -> Path:
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"needs the real checkpoint stories260k, not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def tofu() -> Path:
    folder = SHARED / "data" / "tofu"
    if not folder.is_dir():
        pytest.skip(f"needs the real TOFU files, not found at {folder}")
    return folder


@pytest.fixture(autouse=True)
def _forget_compiled_programs():
    """A process that keeps every program it ever compiled runs out of memory maps (65,530), and XLA then crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        import jax

        jax.clear_caches()
