"""How much of a device training uses: the memory it has held, and its share of the device's arithmetic (MFU)."""

import functools
import math
import sys
import time

import torch

from vitreous.budget import computed_gflops
from vitreous.classifier import ClassifierConfig
from vitreous.objectives.supervised import SupervisedObjective
from vitreous.trainee import Trainee

TRIAL_S = 0.2
"""How long matrix products are timed, once for each process."""
CPU_SIDE, GPU_SIDE = 1024, 4096
"""Of the square matrices: large enough that nothing of the device lies idle, and small beside any model."""
BACKWARD = 3
"""A training step takes so many times the products of the forward pass."""


class Usage:
    """What a run's lines say of memory and arithmetic."""

    def __init__(self, trainee: Trainee) -> None:
        self.world = trainee.world
        self.classifier: ClassifierConfig | None = None
        """What is computed for an image; None for an objective whose work is not that of one forward pass."""
        if isinstance(trainee.objective, SupervisedObjective):
            self.classifier = trainee.objective.classifier.config
            self.can = matmul_rate(self.world.device, self.world.dtype, torch.get_num_threads()) * self.world.size

    def figures(self, images_per_s: float, *, shape: tuple[int, int]) -> dict[str, float]:
        """Most megabytes held so far by this process, and model FLOPs a second over what its device can do.

        The latter (MFU, arXiv:2204.02311, Sec. 4.1 and App. B) counts what images of `shape` need, not what is computed
        again, and is measured against matrix products of the same precision here, not against a data sheet.
        """
        found = {"peak_mb": peak_bytes(self.world.device) / 1e6}
        if self.classifier is not None:
            found["mfu"] = images_per_s * training_flops(self.classifier, shape) / self.can
        return found


@functools.cache
def training_flops(classifier: ClassifierConfig, shape: tuple[int, int]) -> float:
    """Floating-point operations of training on one image."""
    return BACKWARD * 1e9 * computed_gflops(classifier, image_size=shape)


def peak_bytes(device: torch.device) -> int:
    """Most memory held at once: by tensors on an NVIDIA GPU; elsewhere by this process, without its readers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """Floating-point operations a second in products of large square matrices: the best of some on this device."""
    side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    held = torch.full((side, side), 1 / side, dtype=dtype, device=device)
    best, until = math.inf, time.perf_counter() + TRIAL_S
    trials = 0
    while trials < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        held = held @ held
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - started)
        trials += 1
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * side**3 / best
