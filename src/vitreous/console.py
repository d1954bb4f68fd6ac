"""Progress for people: a live line on a terminal, a plain line now and then elsewhere. All on stderr."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PLAIN_INTERVAL_S = 10.0


def duration(seconds: float) -> str:
    """`seconds` as people write it: 8 s, 2:05 min, 1:02:05 h."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def escaped(text: str) -> str:
    """`text` with what a terminal would obey, as names in an archive may hold it, shown as an escape."""
    return re.sub("[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), text)


def _show(line: str, stream: TextIO) -> None:
    """A line, if anyone still listens: a closed pipe or a full disk behind `stream` must not end the work."""
    with suppress(OSError, ValueError):
        print(line, file=stream, flush=True)


class Console:
    """Where long work shows itself."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet or (stream or sys.stderr) is None  # where the shell has closed it
        self.stream: TextIO = stream or sys.stderr

    def say(self, line: str = "") -> None:
        """One line, unless quiet."""
        if not self.quiet:
            _show(escaped(line), self.stream)  # file names may hold anything

    @contextmanager
    def task(self, label: str, total: int, *, done: int = 0) -> "Iterator[Task]":
        """Follow `total` pieces of work, of which `done` were finished before."""
        if self.quiet:
            yield Task(label, total, done)
        elif self.stream.isatty():
            with LiveTask(label, total, done, self.stream) as task:
                yield task
        else:
            yield PlainTask(label, total, done, self.stream)


class Task:
    """A piece of long work; this base shows nothing."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.first = label, total, done
        self.started = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        """Say that `done` of the total is finished; `text` holds figures to show beside it."""

    def expect(self, total: int) -> None:
        """Say how much work there is, once that is known."""
        self.total = total

    def follow(self, done: int, total: int) -> None:
        """`update`, of work that learns on its way how much there is."""
        self.expect(total)
        self.update(done)

    def time_left(self, done: int) -> str:
        """The time left at the average speed so far, or "" before there is one."""
        if done <= self.first:
            return ""
        seconds = (time.monotonic() - self.started) / (done - self.first) * (self.total - done)
        return f"{duration(seconds)} left"


class PlainTask(Task):
    """A line every ten seconds and one at the end, for logs and pipes."""

    def __init__(self, label: str, total: int, done: int, stream: TextIO) -> None:
        super().__init__(label, total, done)
        self.stream, self.shown = stream, self.started

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if done < self.total and now - self.shown < PLAIN_INTERVAL_S:
            return
        if done >= self.total and now - self.started < 1 and not text:
            return  # short work needs no line
        self.shown = now
        parts = [
            f"{self.label} {done:,}/{self.total:,}",
            text,
            self.time_left(done) if done < self.total else "",
        ]
        _show("  ".join(part for part in parts if part), self.stream)


class LiveTask(Task):
    """A bar that moves and a line of figures below it, on a terminal."""

    def __init__(self, label: str, total: int, done: int, stream: TextIO) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        super().__init__(label, total, done)

        class Bar(Progress):
            figures = ""

            def get_renderables(self):
                yield from super().get_renderables()
                if self.figures:
                    yield Text(self.figures, no_wrap=True, overflow="ellipsis")

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
        self.bar = Bar(*columns, console=RichConsole(file=stream), transient=True)
        self.id = self.bar.add_task(label, total=total or None, completed=done, text="")

    def __enter__(self) -> "LiveTask":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.__exit__(*exception)  # pyright: ignore[reportArgumentType]

    def expect(self, total: int) -> None:
        super().expect(total)
        self.bar.update(self.id, total=total)

    def update(self, done: int, text: str = "") -> None:
        self.bar.figures = text
        self.bar.update(self.id, completed=done, text=f"{done:,}/{self.total:,}  {self.time_left(done)}")
        self.bar.start()  # not before: what comes first may have a bar of its own
