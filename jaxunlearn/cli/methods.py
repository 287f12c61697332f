"""`jaxunlearn methods`."""

import inspect
from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from dataclasses import make_dataclass

    parse(make_dataclass("Methods", [], namespace={"__doc__": "List the unlearning methods."}), "methods", argv)
    from jaxunlearn.methods import CATALOGUE

    for name, entry in CATALOGUE.items():
        parameters = inspect.signature(entry.make).parameters.values()
        defaults = {p.name: "(to be given)" if p.default is p.empty else p.default for p in parameters}
        defaults = {name: value for name, value in defaults.items() if name != "optimizer"} | dict(entry.run_options)
        print(f"{name}  ({entry.family}; {entry.source})")
        print(f"    needs   {entry.needs}")
        print(f"    cost    {entry.cost} a step")
        print(f"    options {', '.join(f'{key}={value}' for key, value in defaults.items())}")
    print("\nCost: g gradients, H Hessian and G Gauss-Newton products. Set options with --option name=value.")
