"""This process among all of them: device, threads, precision. One process is a world of one."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from vitreous.allocator import keep_freed_memory
from vitreous.cores import free_cores
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
        keep_freed_memory()
    return World(rank=0, size=1, device=chosen, dtype=_dtype(chosen), threads=threads)


def _named_device(name: str) -> torch.device:
    try:
        chosen = torch.device(name)
        float(torch.zeros(1, device=chosen))
        if chosen.index is not None and chosen.type != "cpu":
            torch.accelerator.set_device_index(chosen.index)
        return chosen
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"cannot compute on device {name!r} here; use --device auto, or cpu") from None


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32  # CPUs without bfloat16 instructions are many times slower in it
