"""The ledger of certified removals: what every request left behind, and whether the next one still fits.

A certificate covers all requests together: the gradients that they leave behind add up (`certified`), and once their
sum would pass the budget `sigma epsilon / c`, the noise of training no longer hides it. Then there is one way on, to
train again on what is kept, with new noise and a new ledger. The ledger is a value: `spend` returns the next one, and
raises before anything is released that no certificate covers.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxunlearn.files import new_file
from jaxunlearn.methods.certified import CertifiedHead, TrainedHead

FORMAT = 1


class BudgetSpentError(ValueError):
    """A request does not fit into what is left of the budget."""


class Request(NamedTuple):
    """One line of a ledger.

    Attributes:
        ids: what was removed, by the caller's names; none for the gradient that training ended with.
        bound: the gradient norm it may have left behind.
    """

    ids: tuple[str, ...]
    bound: float


@dataclass(frozen=True)
class Ledger:
    """What has been spent of a budget, request by request.

    Attributes:
        budget: `sigma epsilon / c` of the head.
        epsilon: of the guarantee that holds as long as `spent <= budget`.
        delta: of the same.
        requests: what was spent, in order.

    Example:
        >>> head = CertifiedHead("logistic", sigma=10.0, epsilon=1.0, delta=1e-4)
        >>> ledger = Ledger(head.budget, head.epsilon, head.delta).spend(["record 3"], 2.0)
        >>> round(ledger.budget, 3), round(ledger.left, 3)
        (2.28, 0.28)
        >>> ledger.spend(["record 9"], 0.5)
        Traceback (most recent call last):
        ...
        jaxunlearn.methods.ledger.BudgetSpentError: removing record 9 may leave 0.5 ...
    """

    budget: float
    epsilon: float
    delta: float
    requests: tuple[Request, ...] = ()

    def __post_init__(self):
        for name in ("budget", "epsilon", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Ledger({name}={value}): give a positive number")
        for request in self.requests:
            if not (math.isfinite(request.bound) and request.bound >= 0):
                raise ValueError(f"Ledger: the bound {request.bound} of {_names(request.ids)} is not a length")

    @classmethod
    def open(cls, head: CertifiedHead, trained: TrainedHead) -> "Ledger":
        """The ledger of a newly trained head; its first line is the gradient norm that training ended with.

        Raises:
            BudgetSpentError: when training stopped so far from the minimum that no request fits.
        """
        return cls(head.budget, head.epsilon, head.delta).spend((), float(trained.gradient_norm))

    @property
    def spent(self) -> float:
        """Sum of all bounds."""
        return math.fsum(request.bound for request in self.requests)

    @property
    def left(self) -> float:
        """`budget - spent`."""
        return self.budget - self.spent

    def spend(self, ids: Iterable[object], bound: float) -> "Ledger":
        """The ledger with one more request.

        Args:
            ids: names of the examples, written as strings.
            bound: `Removal.bound`.

        Raises:
            BudgetSpentError: when the bound, or one that is not a number, does not fit; release nothing then.
        """
        names, bound = tuple(str(one) for one in ids), float(bound)
        if not bound <= self.left:  # also for NaN
            what = f"removing {_names(names)}" if names else "training"
            raise BudgetSpentError(
                f"{what} may leave {bound:.3g} of gradient behind, and {max(self.left, 0.0):.3g} of a budget of "
                f"{self.budget:.3g} is left for epsilon={self.epsilon:g}, delta={self.delta:g}: train again without "
                "those examples, head.train(examples, key=<a new key>), and open a new ledger, Ledger.open(head, "
                "trained); a larger l2 or sigma makes the next one last longer"
            )
        return Ledger(self.budget, self.epsilon, self.delta, (*self.requests, Request(names, bound)))

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all: a new file, flushed to the disk, takes the place of the old one."""
        lines = [{"ids": list(request.ids), "bound": request.bound} for request in self.requests]
        content = {
            "format": FORMAT, "budget": self.budget, "epsilon": self.epsilon, "delta": self.delta, "requests": lines
        }  # fmt: skip
        with new_file(path, replace=True) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """What `save` wrote.

        Raises:
            ValueError: naming the file, when it is no ledger, or one of another format.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
            requests = tuple(Request(tuple(map(str, r["ids"])), float(r["bound"])) for r in content["requests"])
            return cls(*(float(content[name]) for name in ("budget", "epsilon", "delta")), requests)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no ledger of certified removals: {error!r}") from error


def _names(ids: tuple[str, ...]) -> str:
    shown = ", ".join(ids[:3])
    return f"{shown} and {len(ids) - 3} more" if len(ids) > 3 else shown
