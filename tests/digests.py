"""One short name for every bit of a training's state."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU; every process must ask when it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        full = whole(tensor)
        found.update(f"{name} {full.dtype} {tuple(full.shape)} ".encode())
        found.update(full.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


TIMES = ("seconds", "images_per_s", "data_wait", "peak_mb", "mfu", "slowest", "behind_s")


def timeless(measurements: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in measurements]
