"""Who hears of a run's measurements besides metrics.jsonl. Whatever fails there is said once; training goes on."""

import json
import math
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from vitreous.errors import InputError
from vitreous.files import read_text, write_text
from vitreous.run_folder import RunFolder
from vitreous.tracking.services import SERVICES, Service
from vitreous.tracking.tensorboard import EventFile, scalars

PATIENCE_S = 15.0
"""How long the end of a run waits for a tracker that has not sent all."""


class Trackers:
    """TensorBoard's event file of a run, and the trackers named; a context in which they hear of its measurements.

    Only the main process has them.
    """

    def __init__(
        self, names: tuple[str, ...], *, run: RunFolder, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.run, self.say = run, say
        self.events, self._silent = EventFile(run), False
        self.senders = [Sender(name, run=run, config=config, say=say) for name in names]

    def __enter__(self) -> "Trackers":
        self._written(self.events.begin)
        lines = list(self.run.measurements())
        for sender in self.senders:
            sender.start(lines)
        return self

    def add(self, line: Mapping[str, Any]) -> None:
        """Tell all of a line, the newest of metrics.jsonl."""
        self._written(lambda: self.events.add(line))
        for sender in self.senders:
            sender.lines.put(line)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.events.close()
        for sender in self.senders:
            sender.end(done=kind is None)

    def _written(self, write: Callable[[], None]) -> None:
        """Say when the disk begins to refuse, and try again with the next line."""
        try:
            write()
            self._silent = False
        except (InputError, OSError) as error:
            if not self._silent:
                self.say(f"warning: nothing new for TensorBoard: {error}")
            self._silent = True


class Sender:
    """A thread that sends the lines of metrics.jsonl to one tracker, so that no slow network holds up a step.

    RUN/trackers.json holds how many lines each tracker has got: a run that goes on sends what comes after these.
    """

    def __init__(self, name: str, *, run: RunFolder, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.name, self.run, self.config, self.say = name, run, config, say
        self.lines: queue.SimpleQueue[Mapping[str, Any] | bool] = queue.SimpleQueue()
        """What is to be sent; at the end, whether the run is done."""
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self, lines: list[dict[str, Any]]) -> None:
        """Begin, with the lines that are there already."""
        for line in lines:
            self.lines.put(line)
        self.thread.start()

    def end(self, *, done: bool) -> None:
        """Wait until all is sent, but not for ever."""
        self.lines.put(done)
        self.thread.join(PATIENCE_S)
        if self.thread.is_alive():
            self.say(f"warning: {self.name} has not got everything within {PATIENCE_S:.0f} s; metrics.jsonl has")

    def _work(self) -> None:
        try:
            self._send()
        except Exception as error:  # theirs, of whatever kind
            said = " ".join(str(error).split())
            self.say(f"warning: {self.name} is left out from now on: {type(error).__name__}: {said}")

    def _send(self) -> None:
        before = noted(self.run).get(self.name, {})
        service: Service = SERVICES[self.name](
            self.run.path.resolve().name, self.config, folder=self.run.path, id=before.get("id")
        )
        got, number = before.get("lines", 0), 0
        while not isinstance(line := self.lines.get(), bool):
            number += 1
            if number <= got:
                continue
            if values := {name: value for name, value in scalars(line).items() if math.isfinite(value)}:
                service.log(values, line["step"])
            with _noting:
                self.run.check()
                everyone = noted(self.run) | {self.name: {"id": service.id, "lines": number}}
                write_text(self.run.trackers, json.dumps(everyone, indent=1) + "\n")
        service.end(done=line)


_noting = threading.Lock()


def noted(run: RunFolder) -> dict[str, Any]:
    """What RUN/trackers.json says, of each tracker; nothing, if it cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads(read_text(run.trackers))
        if isinstance(found, dict):
            return {
                name: entry
                for name, entry in found.items()
                if isinstance(entry, dict) and isinstance(entry.get("id"), str) and isinstance(entry.get("lines"), int)
            }
    return {}
