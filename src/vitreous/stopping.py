"""Ctrl-C and SIGTERM: finish the step, save, say how to go on. A second Ctrl-C leaves at once."""

import signal
import threading
from types import FrameType

EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: stopped early, can be gone on with


class Stopped(Exception):
    """Training stopped before its end, after saving."""

    def __init__(self, step: int, steps: int, exit_code: int, reason: str) -> None:
        self.step, self.exit_code = step, exit_code
        super().__init__(f"{reason} after step {step:,} of {steps:,}")


class Lost(Exception):
    """Another process of the run died, hangs or was cut off; the newest checkpoint can be gone on with."""

    exit_code = EXIT_TRY_AGAIN


class StopRequest:
    """Within this context the first SIGINT or SIGTERM sets `signal` instead of ending the process."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def exit_code(self) -> int:
        """75 after SIGTERM, with which schedulers ask to make room; 130 after Ctrl-C, as shells count."""
        return EXIT_TRY_AGAIN if self.signal == signal.SIGTERM else 128 + (self.signal or 0)

    @property
    def reason(self) -> str:
        """What happened, in words."""
        return "interrupted" if self.signal == signal.SIGINT else "asked to end"
