"""Several processes as one program: every process runs the same command and holds the devices of its own machine.

JAX's distributed runtime finds the processes, watches over them and ends them together; here is only when it is asked
to. A TPU pod, `srun` and `mpirun` say in the environment who takes part. Elsewhere three options say it:

    jaxunlearn unlearn ... --coordinator 10.0.0.1:8476 --num-processes 4 --process-id 0     # to 3, one a machine

On one machine nothing is started. After `start`, `jax.devices()` are those of all processes, a mesh spans them, and
every process computes its part of the same arrays.

A process that dies is missed after `DEAD_AFTER` seconds without a sign of life, a process that ends while others go on
after as long; the runtime then ends all others with a message that says so. One that only waited would wait forever:
nothing can be computed without the parts of an array that are gone.
"""

import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

DEAD_AFTER = 30
SPEAK_AFTER = 10
CONNECT_WITHIN = 300
_EXCHANGES = ("Gloo", "NCCL", "heartbeat", "oordination", "UNAVAILABLE", "Connection closed", "Connection reset")


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    dead_after: int = DEAD_AFTER,
) -> None:
    """Join the other processes, if there are any; before anything else is asked of JAX.

    Args:
        coordinator: address of process 0 and a free port there, `HOST:PORT`, as all processes can reach it.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        dead_after: seconds without a sign of life after which a process counts as dead.

    Raises:
        ValueError: some of the three are given but not all, or they make no sense, or the others did not come.

    Example:
        >>> start()  # nothing says that there are others
        >>> start("10.0.0.1:8476", 2, 2)
        Traceback (most recent call last):
        ValueError: --process-id 2 of --num-processes 2: processes are counted from 0 to 1
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    if any(value is not None for value in given.values()):
        _check(given)
        if num_processes == 1:
            return
    elif not in_cluster():
        return
    if jax.distributed.is_initialized():
        return
    # Where nobody comes the runtime ends the process with nothing to catch: what it waits for is said before.
    waiting = threading.Timer(SPEAK_AFTER, _say_who_is_waited_for, [coordinator, num_processes, process_id])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=CONNECT_WITHIN,
            heartbeat_timeout_seconds=dead_after,
            shutdown_timeout_seconds=dead_after,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if coordinator is None:
            raise ValueError(
                f"this machine seems to be one of several, but JAX cannot find the others ({reason}); say who they are "
                "by --coordinator HOST:PORT, --num-processes N and --process-id I; for this machine alone N is 1"
            ) from error
        raise ValueError(
            f"process {process_id} of {num_processes} could not join the others at {coordinator} ({reason}); start all "
            "of them with the same number and the same address, which must be that of process 0"
        ) from error
    finally:
        waiting.cancel()


def in_cluster() -> bool:
    """Whether the environment says that there are other processes, or is one that JAX knows how to ask.

    Looks at what `srun` and `mpirun` tell the processes they start, and at machines with TPUs.
    """
    environment = os.environ
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys():
        return int(environment.get("SLURM_NTASKS", 1)) > 1
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if names is not None:
        return "," in names
    return _has_tpu() and "TPU_SKIP_MDS_QUERY" not in environment


def lost(error: Exception) -> str | None:
    """What to tell of an error in an exchange with a process that is gone; None for any other error.

    Example:
        >>> lost(ValueError("--steps 0")) is None
        True
    """
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1:
        return None
    reason = str(error).splitlines()[0]
    if not any(part in reason for part in _EXCHANGES):
        return None
    return (
        f"process {jax.process_index()} of {jax.process_count()} cannot reach another one, which has died or was cut "
        f"off ({reason}); start all of them again, with --resume where the command has it"
    )


def _has_tpu() -> bool:
    """Chips that the driver shows, and the library that talks to them; whether there are more is asked by JAX."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def _say_who_is_waited_for(coordinator: str | None, count: int | None, process: int | None) -> None:
    who = "this process" if process is None else f"process {process} of {count}"
    where = "" if coordinator is None else f" at {coordinator}, the address of process 0"
    print(f"{who} waits for the others{where}, for at most {CONNECT_WITHIN} s", file=sys.stderr, flush=True)


def _check(given: dict[str, Any]) -> None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing: --coordinator HOST:PORT, --num-processes N and --process-id I go "
            "together; give all three to every process, or none on a TPU pod and under srun"
        )
    coordinator, count, process = given.values()
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"--coordinator {coordinator}: give the address of process 0 and a free port, such as 10.0.0.1:8476"
        )
    if count < 1:
        raise ValueError(f"--num-processes {count}: give at least 1")
    if not 0 <= process < count:
        raise ValueError(
            f"--process-id {process} of --num-processes {count}: processes are counted from 0 to {count - 1}"
        )
