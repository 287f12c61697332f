"""`jaxunlearn methods`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    import tyro

    @dataclass(frozen=True)
    class Methods:
        """List the unlearning methods, or explain one with all its options."""

        name: Annotated[str | None, tyro.conf.Positional] = None
        """A method; none lists all."""

    name = parse(Methods, "methods", argv).name
    from jaxunlearn.methods import CATALOGUE
    from jaxunlearn.runs.options import describe, options_of, require_method

    if name is not None:
        require_method(name)
        print(describe(name))
        return
    for name, entry in CATALOGUE.items():
        print(f"{name}  ({entry.family}; {entry.source})")
        print(f"    needs   {entry.needs}")
        print(f"    cost    {entry.cost} a step")
        print(f"    options {', '.join(_short(option) for option in options_of(name))}")
    print(
        "\nCost: g gradients, H Hessian and G Gauss-Newton products. `jaxunlearn methods NAME` explains the options of"
    )
    print("one, `jaxunlearn unlearn --method NAME --option name=value` sets them.")


def _short(option) -> str:
    import inspect

    return (
        f"{option.name}=(required)" if option.default is inspect.Parameter.empty else f"{option.name}={option.default}"
    )
