"""Processes that read images: how they start and end, and which image is at fault when one dies or hangs."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager, nullcontext
from multiprocessing import connection, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import DataLoader

from vitreous.errors import InputError, some

POLL_S = 5.0
"""How soon a worker that died is noticed."""
TIMEOUT_S = 120.0
"""How long an image may take, or a batch of which no image is being read."""
START_S = 600.0
"""How long workers may take to start: on a shared disk, libraries come slowly."""
NO_IMAGE, NOT_STARTED = -1, -2


@contextmanager
def starting(num_workers: int) -> Iterator[None]:
    """Turn a lack of what workers are started with into an `InputError` that says how much shared memory there is."""
    try:
        yield
    except OSError as error:
        there = "there is no /dev/shm"
        if os.path.isdir("/dev/shm"):
            total, _, free = shutil.disk_usage("/dev/shm")
            there = f"/dev/shm has {free / 1e6:,.1f} of {total / 1e6:,.1f} MB free"
        raise InputError(
            f"cannot start {num_workers} processes that read images ({error.strerror or error}); {there}; give it more "
            "(docker run --shm-size=64m), or read without such processes: --num_workers 0"
        ) from None


def notes(num_workers: int) -> MutableSequence[int]:
    """For each worker, a place to write the position of the image that it is about to read; the memory outlives it."""
    if not num_workers:
        return [NO_IMAGE]
    locks = multiprocessing.get_context("spawn").Lock
    _ = [locks() for _ in range(10 + 3 * num_workers)]  # as many as torch takes, which ends in a mess where it cannot
    return RawArray("q", [NOT_STARTED] * num_workers)


def patient(loader: DataLoader, reading: MutableSequence[int], where: Callable[[int], str]) -> Iterator[Any]:
    """What `loader` gives; its timeout only makes it look whether the workers are alive and come on.

    Raises:
        InputError: if one died or hangs; names the image that it was reading, by `where`.
    """
    with starting(loader.num_workers), _sigterm_blocked() if loader.num_workers else nullcontext():
        batches = iter(loader)
    workers: list[BaseProcess] = getattr(batches, "_workers", [])
    waited, before = 0.0, list(reading)
    while True:
        try:
            loaded = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, RuntimeError):  # a batch that was sent for, of one that may be about to die
                connection.wait([worker.sentinel for worker in workers], timeout=1)
            if dead := [number for number, worker in enumerate(workers) if not worker.is_alive()]:
                number = max(dead, key=lambda number: reading[number])  # one that was reading, if any was
                raise _died(workers[number].exitcode, reading[number], where) from error
            if "DataLoader timed out" not in str(error):
                raise
            waited = waited + POLL_S if list(reading) == before else 0.0
            before = list(reading)
            if waited < (START_S if NOT_STARTED in before else TIMEOUT_S):
                continue
            for worker in workers:
                worker.kill()  # C code may keep one from hearing anything else, and we would wait for it at our end
            raise _hangs([i for i in before if i >= 0], waited, where) from error
        waited = 0.0
        yield loaded


def _died(code: int | None, i: int, where: Callable[[int], str]) -> InputError:
    how = f"ended with exit code {code}"
    if code is not None and -code in set(signal.Signals):
        how = f"was killed by {signal.Signals(-code).name}"
    what = "a process that reads images" if i < 0 else f"the process that read {where(i)}"
    look = "free memory" if i < 0 else "that file and at free memory"
    return InputError(
        f"{what} {how}; look at {look}, then give the same command again; --num_workers 0 reads without such processes"
    )


def _hangs(positions: list[int], waited: float, where: Callable[[int], str]) -> InputError:
    if not positions:
        return InputError(
            f"no batch came in {waited:.0f} s though no image was being read; "
            "look at memory, then give the same command again, perhaps with --num_workers 0"
        )
    return InputError(
        f"reading {some([where(i) for i in positions])} did not end within {waited:.0f} s; "
        "look at that file and at the disk or network it is on, then give the same command again"
    )


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Start processes that SIGTERM cannot end before they can tell who sent it."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    resource_tracker.ensure_running()  # its start unblocks SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(number: int) -> None:
    """Leave signals that reach the whole group, of Ctrl-C or a launcher, to the main process.

    It decides what they mean, and needs its workers until it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a fork server may be older than our loaders
        threading.Thread(target=_heed_parent, daemon=True).start()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _heed_parent() -> None:
    """End a worker at a SIGTERM of the process it reads for alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _end_with_parent() -> None:
    """End a worker when the process it reads for was killed.

    torch ends it when its parent is gone, but that is the fork server, which lives as long as a worker does.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def context(*, preload: str) -> BaseContext:
    """Workers that share no state with a process which may already use threads or a GPU."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([preload])
    return server
