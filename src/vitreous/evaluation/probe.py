"""Small classifiers trained by SGD on frozen features; every learning rate of a grid at once, on the same batches.

Features come from the evaluation view and are computed once, so images are not altered while a probe learns; papers
crop and mirror them meanwhile, which is worth a few tenths of a percent on ImageNet.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous import metrics
from vitreous.config import BELOW_ONE, check_ranges
from vitreous.console import Console
from vitreous.data.source import Source
from vitreous.evaluation.base import Evaluation, Labelled, Outcome, at_the_edge, interval, learning_parts
from vitreous.evaluation.features import Features, Frozen, joined
from vitreous.schedule import Cosine
from vitreous.seeding import generator, key


@dataclass(frozen=True, kw_only=True)
class Probe(Evaluation):
    """A probe; held-back images choose its learning rate, then all are learned from."""

    scored: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    """Peaks of a cosine to choose from, for 256 images a step."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images a step; the learning rate goes in proportion to it."""
    momentum: float = 0.9
    """Averaging of gradients."""
    seed: int = 0
    """Another seed starts, shuffles and holds back otherwise."""

    def __post_init__(self) -> None:
        check_ranges(self, learning_rates=(0, math.inf), epochs=(1, math.inf), batch_size=(1, math.inf))
        check_ranges(self, momentum=(0, BELOW_ONE), seed=(0, math.inf))

    @abstractmethod
    def features(self, model: Frozen, source: Source) -> Features:
        """What the probe sees of each image."""

    @abstractmethod
    def build(self, number: int, *, width: int, num_classes: int) -> nn.Module:
        """`number` probes side by side, from (image, ..., width) to logits (number, image, num_classes).

        Every parameter has the probes as its first axis.
        """

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        train, test = self.features(model, data.training), self.features(model, data.test)
        dev = None if data.dev is None else self.features(model, data.dev)
        learned, judge = learning_parts(train, dev, seed=self.seed)
        whole = train if dev is None else joined(train, dev)
        rates, name, number = self.learning_rates, type(self).__name__.lower(), len(data.classes)
        device = model.world.device
        with console.task("epoch", 2 * self.epochs) as task:
            answers = self.answers(learned, judge, rates, num_classes=number, device=device, progress=task.update)
            curve = [metrics.hits_at(said, judge.labels, k=1) / len(judge.labels) for said in answers]
            best = int(np.argmax(curve))

            def later(done: int) -> None:
                task.update(self.epochs + done)

            chosen = rates[best : best + 1]
            (said,) = self.answers(whole, test, chosen, num_classes=number, device=device, progress=later)
        top1 = metrics.share(metrics.hits_at(said, test.labels, k=1), len(test.labels))
        figures = {
            "top1": asdict(top1),
            "top5": metrics.hits_at(said, test.labels, k=5) / len(test.labels) if number > 5 else None,
            "loss": metrics.cross_entropy(said, test.labels),
            "learning_rate": rates[best],
            "grid": [{"learning_rate": rate, "dev_top1": score} for rate, score in zip(rates, curve)],
        }
        more = f"{interval(top1)}; learning rate {rates[best]:g}, {curve[best]:.2%} of the images that chose it"
        edge = at_the_edge("learning rate", rates, curve)
        return Outcome([(name, f"{top1.value:.2%}", more)], figures, edge, top1.value)

    def answers(
        self,
        train: Features,
        test: Features,
        rates: Sequence[float],
        *,
        num_classes: int,
        device: torch.device,
        progress: Callable[[int], None],
    ) -> Float[np.ndarray, "rate image cls"]:
        """Class probabilities of every image of `test`, after training a probe with each rate on `train`."""
        mean, deviation = (torch.from_numpy(numbers).to(device) for numbers in _moments(train.values))

        def seen(features: Features, rows: np.ndarray) -> Float[Tensor, "image *token width"]:
            return (torch.from_numpy(features.values[rows]).to(device).float() - mean) / deviation

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(self.seed, "probe"))
            probes = self.build(len(rates), width=train.values.shape[-1], num_classes=num_classes).to(device)
        optimizer = torch.optim.SGD(probes.parameters(), momentum=self.momentum)
        total, batch_size = len(train.labels), min(self.batch_size, len(train.labels))
        scale = torch.tensor(rates, device=device) * batch_size / 256
        steps = total // batch_size
        for epoch in range(self.epochs):
            order = generator(self.seed, "probe", epoch).permutation(total)
            for step in range(steps):
                rows = order[step * batch_size : (step + 1) * batch_size]
                labels = torch.from_numpy(train.labels[rows]).to(device).expand(len(rates), -1)
                logits = probes(seen(train, rows))
                optimizer.param_groups[0]["lr"] = Cosine(peak=1.0)((epoch * steps + step) / (self.epochs * steps))
                optimizer.zero_grad()
                F.cross_entropy(logits.flatten(0, 1), labels.flatten()).mul(len(rates)).backward()
                for parameter in probes.parameters():  # SGD is linear in its gradient, so a rate can act there
                    assert parameter.grad is not None
                    parameter.grad *= scale.view(-1, *[1] * (parameter.ndim - 1))
                optimizer.step()
            progress(epoch + 1)
        said = np.empty((len(rates), len(test.labels), num_classes), np.float32)
        with torch.inference_mode():
            for rows in np.array_split(np.arange(len(test.labels)), -(-len(test.labels) // self.batch_size)):
                said[:, rows] = probes(seen(test, rows)).softmax(dim=-1).cpu().numpy()
        return np.nan_to_num(said, copy=False)  # a rate that was too high is merely a bad one


def _moments(values: np.ndarray) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, " width"]]:
    """Mean and standard deviation of each feature, as a norm without weights would divide by (MAE, App. A.1)."""
    total, squares, count = np.zeros(values.shape[-1]), np.zeros(values.shape[-1]), 0
    for part in np.array_split(values, -(-len(values) // 1024)):  # half precision must not be summed, nor all widened
        flat = part.reshape(-1, part.shape[-1]).astype(np.float64)
        total, squares, count = total + flat.sum(axis=0), squares + (flat**2).sum(axis=0), count + len(flat)
    mean = total / count
    return mean.astype(np.float32), (np.sqrt(np.maximum(squares / count - mean**2, 0)) + 1e-5).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Linear(Probe):
    """One linear layer on what the head sees (MAE, arXiv:2111.06377, App. A.1; DINOv2, arXiv:2304.07193, App. B.3)."""

    def features(self, model: Frozen, source: Source) -> Features:
        return model.pooled(source)

    def build(self, number: int, *, width: int, num_classes: int) -> nn.Module:
        return LinearProbes(number, width, num_classes)


class LinearProbes(nn.Module):
    """Linear layers side by side, from zero."""

    def __init__(self, number: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number, width, num_classes))
        self.bias = nn.Parameter(torch.zeros(number, 1, num_classes))

    def forward(self, x: Float[Tensor, "image width"]) -> Float[Tensor, "probe image cls"]:
        return x @ self.weight + self.bias


@dataclass(frozen=True, kw_only=True)
class Attentive(Probe):
    """A learned query that attends to the patch tokens, then a linear layer (CAE, arXiv:2202.03026, Sec. 4.2).

    Half-precision patches of all images are held in memory: 75 kB an image for ViT-Ti/16 at 224 px, 300 kB for B/16.
    """

    epochs: int = 20
    """Passes over the training images."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Peaks of a cosine to choose from, for 256 images a step."""
    num_heads: int = 8
    """Heads of the attention; each has a query and a projection of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, num_heads=(1, math.inf))

    def features(self, model: Frozen, source: Source) -> Features:
        return model.patches(source)

    def build(self, number: int, *, width: int, num_classes: int) -> nn.Module:
        return AttentiveProbes(number, width, num_classes, self.num_heads)


class AttentiveProbes(nn.Module):
    """Attention poolings of one query a head, side by side, each with a linear layer that starts at zero.

    With one query for all images, key and query projections are one vector a head, and values may be projected after
    they are mixed: the same functions as multi-head attention with a learned query, at a fraction of the work.
    """

    def __init__(self, number: int, width: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        head_dim = -(-width // num_heads)
        first = torch.randn(1, width, num_heads) * width**-0.5  # every rate starts from the same numbers
        value = torch.randn(1, num_heads, width, head_dim) * width**-0.5
        self.query = nn.Parameter(first.repeat(number, 1, 1))
        self.value = nn.Parameter(value.repeat(number, 1, 1, 1))
        self.linear = LinearProbes(number, num_heads * head_dim, num_classes)

    def forward(self, x: Float[Tensor, "image patch width"]) -> Float[Tensor, "probe image cls"]:
        attention = (x[None] @ self.query[:, None]).softmax(dim=2)
        mixed = attention.transpose(2, 3) @ x[None]
        return self.linear(torch.einsum("pihw,phwd->pihd", mixed, self.value).flatten(2))
