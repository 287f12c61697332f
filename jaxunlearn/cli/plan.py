"""`jaxunlearn plan`."""

import os
from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Plan

    settings = parse(Plan, "plan", argv)
    name, _, count = settings.topology.partition(":")
    if name == "cpu" and count.isdigit():
        # Virtual devices are made when JAX starts, which it has not yet.
        flags = os.environ.get("XLA_FLAGS", "")
        if "device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    from jaxunlearn.runs.plan import plan

    plan(settings)
