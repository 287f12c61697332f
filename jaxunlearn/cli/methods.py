"""`jaxunlearn methods`."""

import inspect
from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from dataclasses import make_dataclass

    parse(make_dataclass("Methods", [], namespace={"__doc__": "List the unlearning methods."}), "methods", argv)
    from rich.console import Console
    from rich.table import Table

    from jaxunlearn.methods import CATALOGUE

    table = Table(caption="cost a step: g gradients, H Hessian and G Gauss-Newton products; options go to --option")
    for column in ("method", "family", "needs", "cost", "options and defaults", "source"):
        table.add_column(column)
    for name, entry in CATALOGUE.items():
        parameters = inspect.signature(entry.make).parameters.values()
        options = ", ".join(f"{p.name}={p.default}" for p in parameters if p.name != "optimizer")
        table.add_row(name, entry.family, entry.needs, entry.cost, options, entry.source)
    Console().print(table)
