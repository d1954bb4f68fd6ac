"""TensorBoard's event files, written without TensorBoard.

A file is a row of TFRecords, each a protocol buffer `Event` (tensorboard/compat/proto/event.proto): wall_time (field 1,
a double), step (2), file_version (3), summary (5), session_log (7). A summary holds values (1), each of a tag (1) and a
simple_value (2, a float32).
"""

import errno
import math
import os
import struct
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from typing import Any

from vitreous.data.vtab.tfrecord import crc32c, masked
from vitreous.files import write_bytes, writing
from vitreous.run_folder import RunFolder

PLACES = ("step", "split", "event", "seconds")
"""What of a line says where its numbers belong."""
PATTERN = "*events.out.tfevents.*.vitreous*"


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by the names they are drawn under: train/loss, val/top1, spike/loss.

    What was no finite number, and so stands there as null or text, is NaN.
    """
    group = line.get("split") or line.get("event") or "other"
    found = {}
    for name, value in line.items():
        if name not in PLACES and not isinstance(value, bool):
            try:
                found[f"{group}/{name}"] = math.nan if value is None else float(value)
            except (TypeError, ValueError, OverflowError):
                continue
    return found


def event(values: Mapping[str, float], *, step: int, wall_time: float) -> bytes:
    """The record of these values; `wall_time` in seconds since 1970."""
    each = (_bytes(1, name.encode("utf-8", "replace")) + b"\x15" + _float32(value) for name, value in values.items())
    return record(_event(wall_time, b"\x10" + _varint(step) + _bytes(5, b"".join(_bytes(1, value) for value in each))))


def record(data: bytes) -> bytes:
    """`data` as a TFRecord."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked(crc32c(length))), data, struct.pack("<I", masked(crc32c(data)))))


class EventFile:
    """RUN/tensorboard/events.out.tfevents.TIME.vitreous, the event file of a run; says what metrics.jsonl says.

    It is made anew from metrics.jsonl each time a process goes on with the run, under a later name, and the one before
    is left empty: so no step is there twice, and a TensorBoard that is looking, which would wait for a file that is
    gone, takes the new one in place of the old.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.tensorboard
        self._file: FileIO | None = None
        self._zero = self._seconds = 0.0

    def begin(self) -> None:
        """Make the file anew, with all that stands in metrics.jsonl.

        Raises:
            InputError: if it cannot be written.
        """
        self.close()
        self.run.check()
        lines = list(self.run.measurements())
        times = [line["seconds"] for line in lines if isinstance(line.get("seconds"), float)]
        self._zero, self._seconds = time.time() - max(times, default=0.0), 0.0
        folder = self.run.tensorboard
        old = list(folder.glob(PATTERN))
        names = [path.name.split(".")[-2] for path in old]
        stamp = max([int(time.time()), *(int(name) + 1 for name in names if name.isdecimal())])
        self.path = folder / f"events.out.tfevents.{stamp:010}.vitreous"
        write_bytes(self.path, self._whole(lines))
        with writing(folder):
            for other in sorted(old)[:-1]:
                other.unlink(missing_ok=True)
            if old:
                write_bytes(max(old), b"")  # another file: a process that has lost the run still writes into the old
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - kept: another process may take its place

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a line, the newest of metrics.jsonl.

        Raises:
            InputError: if the disk refuses; the next line brings all that is missing.
        """
        if self._file is None:
            self.begin()  # from metrics.jsonl, which holds this line
            return
        data = self._record(line)
        try:
            with writing(self.path):
                end = os.fstat(self._file.fileno()).st_size
                if self._file.write(data) < len(data):
                    self._file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _whole(self, lines: Iterable[Mapping[str, Any]]) -> bytes:
        version = record(_event(self._zero, _bytes(3, b"brain.Event:2")))
        start = record(_event(self._zero, _bytes(7, b"\x08\x01")))  # a reader forgets what it has seen from step 0 on
        return b"".join((version, start, *map(self._record, lines)))

    def _record(self, line: Mapping[str, Any]) -> bytes:
        """The event of a line; its time is that of training, without the pauses between stop and start."""
        if isinstance(seconds := line.get("seconds"), float):  # events have none
            self._seconds = seconds
        return event(scalars(line), step=line["step"], wall_time=self._zero + self._seconds)


def _event(wall_time: float, rest: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", wall_time) + rest


def _bytes(number: int, data: bytes) -> bytes:
    """A field that holds bytes, text or a message."""
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """An integer of 7 bits a byte, lowest first; a negative one in two's complement of 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))
