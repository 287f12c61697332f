"""SIGTERM and Ctrl-C as requests: the step at hand is finished and saved, and then the run ends.

Preemptible machines, Slurm and Kubernetes send SIGTERM some seconds before they kill. A handler that did the saving
itself would run between any two instructions; this one only takes a note, which the loop reads after each step. A
second signal is not waited for.
"""

import signal
import threading
from types import FrameType, TracebackType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and can be resumed; its text says how.

    Attributes:
        exit_code: 130 after Ctrl-C, as shells have it; 75 after SIGTERM, `EX_TEMPFAIL` of sysexits.h: try again.
    """

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.exit_code = EXIT_CODES[signal.Signals(number)]


class Requests:
    """While entered, remembers SIGTERM and Ctrl-C; nothing outside of the main thread, where Python has no handlers.

    Example:
        >>> with Requests() as requests:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     requests.received == signal.SIGTERM
        True
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Requests":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            # None: what another library had installed, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
