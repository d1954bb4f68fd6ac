"""Memory that processes share: what a source knows of its images, and batches on their way to the main process."""

import os
import pickle
from collections.abc import Sequence
from itertools import accumulate
from multiprocessing.sharedctypes import RawArray
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

ALIGNMENT = 64


def share(value: Any) -> Any:
    """What becomes `value` in each process that is started with it, without a copy of its arrays; useless here.

    Those lie once in shared memory (a file that has no name, on a disk where /dev/shm is too small) and can only be
    read. So a process keeps none of the 16 to 80 bytes for each image that tell its name, place and label.
    """
    return _Shared(value)


class _Shared:
    def __init__(self, value: Any):
        buffers: list[pickle.PickleBuffer] = []
        self.value = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        self.sizes = [part.nbytes for part in parts]
        self.block = RawArray("B", _starts(self.sizes)[-1] + 1)
        memory = memoryview(self.block).cast("B")
        for start, part in zip(_starts(self.sizes), parts):
            memory[start : start + part.nbytes] = part

    def __reduce__(self):
        return _restored, (self.value, self.sizes, self.block)


def _restored(value: bytes, sizes: Sequence[int], block: Any) -> Any:
    memory = memoryview(block).cast("B").toreadonly()
    return pickle.loads(value, buffers=[memory[start : start + size] for start, size in zip(_starts(sizes), sizes)])


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each part begins, and where the last ends."""
    return list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))


def stacked(images: list[UInt8[Tensor, "3 height width"]]) -> UInt8[Tensor, "batch 3 height width"]:
    """`torch.stack`, on Linux into memory that another process can map.

    torch would copy the batch there when it is sent, and take the memory from /dev/shm, of which containers have
    little: Docker 64 MB unless told otherwise.
    """
    if not hasattr(os, "memfd_create"):
        return torch.stack(images)
    shape = torch.Size((len(images), *images[0].shape))
    descriptor = os.memfd_create("batch")
    try:
        os.ftruncate(descriptor, shape.numel())
        memory = torch.UntypedStorage._new_shared_fd_cpu(descriptor, shape.numel())  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        os.close(descriptor)
    return torch.stack(images, out=torch.tensor([], dtype=torch.uint8).set_(memory, 0, shape))  # pyright: ignore[reportCallIssue]
