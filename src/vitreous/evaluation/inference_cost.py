"""What it costs to use a model, to stand beside its accuracy (the paper's App. D.5)."""

import math
import statistics
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitreous.budget import cost
from vitreous.classifier import Classifier
from vitreous.config import check_ranges
from vitreous.console import Console
from vitreous.distributed import World
from vitreous.evaluation.base import Evaluation, Labelled, Outcome
from vitreous.evaluation.features import Frozen


@dataclass(frozen=True, kw_only=True)
class Cost(Evaluation):
    """Parameters, GMACs, images a second and peak memory of the forward pass, on this machine."""

    one_class = False

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Images at a time."""
    seconds: float = 2.0
    """How long each batch size is timed, after one batch that is not."""

    def __post_init__(self) -> None:
        check_ranges(self, batch_sizes=(1, math.inf), seconds=(0.01, 3600))

    def learns(self, model: Frozen, classes: Sequence[str]) -> bool:
        return False

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        spent = cost(model.classifier.config, image_size=model.view.shape)
        rows = [
            ("parameters", f"{spent.parameters:,}", ""),
            ("GMACs an image", f"{spent.gflops / 2:.3f}", f"{spent.tokens:,} tokens"),
        ]
        speeds = []
        for batch_size in self.batch_sizes:
            figures = self._timed(model, batch_size)
            speeds.append(figures)
            more = f"{figures['peak_mb']:,.0f} MB at the peak, weights included"
            rows.append((f"images/s, {batch_size} at a time", f"{figures['images_per_s']:,.1f}", more))
        world = model.world
        dtype = world.precision
        where = {"device": device_name(world), "dtype": dtype, "threads": world.threads}
        figures = {"parameters": spent.parameters, "gmacs": spent.gflops / 2, "tokens": spent.tokens, **where}
        on = f"{where['device']}, {dtype}, {world.threads} CPU threads; decoding of images is not in it"
        return Outcome(rows, {**figures, "speed": speeds}, [on])

    def _timed(self, model: Frozen, batch_size: int) -> dict[str, Any]:
        device, classifier = model.world.device, model.answering
        images = torch.randn(batch_size, model.classifier.config.encoder.channels, *model.view.shape, device=device)
        times: list[float] = []
        with torch.inference_mode(), model.world.autocast():
            peak = _peak(classifier, images, weights=sum(p.nbytes for p in model.classifier.parameters()))
            while sum(times) < self.seconds or len(times) < 3:
                started = time.perf_counter()
                classifier(images)
                _wait(device)
                times.append(time.perf_counter() - started)
        return {"batch_size": batch_size, "images_per_s": batch_size / statistics.median(times), "peak_mb": peak / 1e6}


def device_name(world: World) -> str:
    """The GPU, or the kind of device."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type


def _peak(classifier: Classifier, images: Tensor, *, weights: int) -> int:
    """Most bytes that are held at once in classifying `images`, with `weights` bytes of weights.

    On NVIDIA's GPUs torch's allocator says it; elsewhere the tensors are counted, without workspaces inside a kernel.
    """
    if images.device.type == "cuda":
        classifier(images)
        torch.cuda.reset_peak_memory_stats(images.device)
        classifier(images)
        return torch.cuda.max_memory_allocated(images.device)
    with LiveBytes() as live:
        classifier(images)
    return weights + images.nbytes + live.most


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators return, as long as somebody holds them; `most` is their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _plain((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _plain(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.alive | given:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, storage: int, size: int) -> None:
        self.alive.discard(storage)
        self.now -= size


def _plain(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of `tree`, without weights in a processor's own layout, whose bytes nobody tells."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_mkldnn]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
