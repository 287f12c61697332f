"""Errors about a value that came from a flag name the flag, wherever in the library they arise.

Below the runs nothing knows of a command line: `LoRA(alpha=0.0): give a positive number` is what a call in Python is
told. Who gave `--lora-alpha 0` looks for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_flag(flag: str) -> Iterator[None]:
    """Puts the name of the flag before what is said of its value.

    Example:
        >>> with of_flag("--lora-alpha"):
        ...     raise ValueError("LoRA(alpha=0.0): give a positive number")
        Traceback (most recent call last):
        ValueError: --lora-alpha: LoRA(alpha=0.0): give a positive number
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError and not type(error).__module__.startswith("jaxunlearn."):
            raise  # some other library's: a defect, whose traceback must be seen
        raise ValueError(f"{flag}: {error}") from None
