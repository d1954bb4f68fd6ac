"""CPU cores: how many are ours, and how many of these are free now."""

import math
import os
import time
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""On Linux, microseconds of CPU time and the period in which a container may use them."""


def cores() -> int:
    """CPU cores this process may use: those it is bound to, or its container's share of time if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_LIMIT.read_text().split()
        return min(bound, max(math.ceil(int(quota) / int(period)), 1))
    except (OSError, ValueError):  # no container, or no limit
        return bound


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
