"""This process among all of them: device, threads, precision. One process is a world of one."""

import ctypes
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from vitreous.errors import InputError


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    """Its number, from 0."""
    size: int
    """How many there are."""
    device: torch.device
    """Where it computes."""
    dtype: torch.dtype
    """What it computes in; weights, losses and sums stay float32."""
    threads: int
    """CPU threads it computes with."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """A context in which matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def start(*, device: str = "auto", threads: int | None = None) -> World:
    """Choose the device (the accelerator if there is one), its precision and the CPU threads.

    Raises:
        InputError: if the device is absent, or several processes were started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("this version trains in one process; start it without torchrun")
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        chosen = found if found is not None else torch.device("cpu")
    else:
        chosen = _named_device(device)
    threads = threads or (free_cores() if chosen.type == "cpu" else torch.get_num_threads())
    torch.set_num_threads(threads)
    if chosen.type == "cpu":
        _keep_freed_memory()
    return World(rank=0, size=1, device=chosen, dtype=_dtype(chosen), threads=threads)


def _named_device(name: str) -> torch.device:
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
        return chosen
    except (RuntimeError, AssertionError):
        raise InputError(f"cannot compute on device {name!r} here; use --device auto, or cpu") from None


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32  # CPUs without bfloat16 instructions are many times slower in it


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores() -> int:
    """Cores that other work leaves free, at least one: a thread too many makes a step up to 4 times slower.

    OMP_NUM_THREADS, where set, is taken as the user's choice.
    """
    if chosen := os.environ.get("OMP_NUM_THREADS", ""):
        return max(int(chosen), 1) if chosen.isdigit() else cores()
    return max(idle_cores(), 1)


def idle_cores() -> int:
    """Cores that no other work keeps busy; may be none."""
    return max(cores() - round(busy_cores()), 0)


def busy_cores(*, during_s: float = 0.3) -> float:
    """How many of our cores other work keeps busy: on Linux measured now, elsewhere the load of the last minute."""
    before = _ticks()
    if not before:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    time.sleep(during_s)
    after = _ticks()
    shares = (1 - (after[core][0] - idle) / max(after[core][1] - total, 1) for core, (idle, total) in before.items())
    return sum(shares)


def _ticks() -> dict[int, tuple[int, int]]:
    """Idle and total time of each of our cores since the start of the system, from /proc/stat; empty without it."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        ours = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return {}
    ticks = {}
    for name, *numbers in (line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()):
        if int(name[3:]) in ours:
            values = [int(number) for number in numbers[:8]]
            ticks[int(name[3:])] = (values[3] + values[4], sum(values))  # waiting for the disk is idle too
    return ticks


def _keep_freed_memory() -> None:
    """Ask glibc to keep big freed blocks, or every step pays for fresh pages (a training step is 1.15x faster)."""
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):  # another C library
            return
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)
