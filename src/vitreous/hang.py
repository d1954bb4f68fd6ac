"""When nothing moves any more, every process shows where it stands."""

import faulthandler
import time
from pathlib import Path
from typing import TextIO

from vitreous.errors import InputError
from vitreous.files import writing


class HangWatch:
    """Writes the stacks of all threads into a file when `beat` has not been called for `after_s` seconds.

    The system's timer does it, so it works while Python waits inside a collective of torch.
    """

    def __init__(self, path: Path, after_s: float) -> None:
        self.path, self.after_s = path, after_s
        self._file: TextIO | None = None
        self._armed = -float("inf")

    def __enter__(self) -> "HangWatch":
        try:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a", encoding="utf-8")
        except InputError:  # a full disk is no reason not to train
            self._file = None
        self.beat()
        return self

    def beat(self) -> None:
        """Say that things move; costs microseconds."""
        now = time.monotonic()
        if self._file is not None and now - self._armed > min(self.after_s / 10, 1.0):
            self._armed = now
            faulthandler.dump_traceback_later(self.after_s, file=self._file)

    def __exit__(self, *exception: object) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
