"""Logistic regression on frozen features, along a path of penalties (CLIP, arXiv:2103.00020, App. A.3)."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitreous import metrics
from vitreous.config import check_ranges
from vitreous.console import Console
from vitreous.evaluation.base import (
    Evaluation,
    Labelled,
    Outcome,
    at_the_edge,
    in_float64,
    interval,
    learning_parts,
    standardised,
)
from vitreous.evaluation.features import Features, Frozen, joined


@dataclass(frozen=True, kw_only=True)
class Logistic(Evaluation):
    """Multinomial logistic regression by L-BFGS to its optimum; held-back images choose the penalty.

    What is least: the mean cross-entropy plus penalty / 2 times the squared weights; the bias is free. Features are
    standardised by those of training, so that one grid of penalties suits every model. With the penalty chosen, the
    images that chose it are learned from too. All in float64 and in memory at once: on the 1.3 million images of
    ImageNet that is tens of gigabytes, and slow without a GPU that is quick at float64.
    """

    scored: ClassVar[bool] = True
    exponents: tuple[float, ...] = (0, -1, -2, -3, -4, -5, -6)
    """log10 of the penalties to choose from; from the largest on, each solution is where the next one starts."""
    tolerance: float = 1e-6
    """Largest slope of the loss along any weight at which L-BFGS stops."""
    max_iterations: int = 1000
    """Most steps of L-BFGS for one penalty."""
    seed: int = 0
    """Another seed holds back other images."""

    def __post_init__(self) -> None:
        check_ranges(self, exponents=(-20, 20), max_iterations=(1, math.inf), seed=(0, math.inf))
        check_ranges(self, tolerance=(0, 1))

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        train, test = model.pooled(data.training), model.pooled(data.test)
        dev = None if data.dev is None else model.pooled(data.dev)
        learned, judge = learning_parts(train, dev, seed=self.seed)
        device, number = model.world.device, len(data.classes)
        path = sorted(self.exponents, reverse=True)
        with console.task("regression", 2 * len(path)) as task:

            def follow(train: Features, test: Features, exponents: Sequence[float], done: int) -> Iterator[np.ndarray]:
                x, measured = standardised(in_float64(train, device), in_float64(test, device))
                labels, start = torch.from_numpy(train.labels).to(x.device), None
                for i, exponent in enumerate(exponents):
                    start = regress(
                        x,
                        labels,
                        penalty=10.0**exponent,
                        num_classes=number,
                        start=start,
                        tolerance=self.tolerance,
                        max_iterations=self.max_iterations,
                    )
                    yield (measured @ start[:-1] + start[-1]).softmax(dim=1).cpu().numpy()
                    task.update(done + i + 1)

            answers = follow(learned, judge, path, 0)
            curve = [metrics.hits_at(said, judge.labels, k=1) / len(judge.labels) for said in answers]
            best = int(np.argmax(curve))
            whole = joined(train, dev) if dev is not None else train
            (said,) = deque(follow(whole, test, path[: best + 1], 2 * len(path) - best - 1), maxlen=1)
        top1 = metrics.share(metrics.hits_at(said, test.labels, k=1), len(test.labels))
        figures = {
            "top1": asdict(top1),
            "top5": metrics.hits_at(said, test.labels, k=5) / len(test.labels) if number > 5 else None,
            "loss": metrics.cross_entropy(said, test.labels),
            "penalty": 10.0 ** path[best],
            "path": [{"penalty": 10.0**exponent, "dev_top1": score} for exponent, score in zip(path, curve)],
        }
        penalty = 10.0 ** path[best]
        more = f"{interval(top1)}; penalty {penalty:g}, {curve[best]:.2%} of the images that chose it"
        edge = at_the_edge("penalty", [10.0**exponent for exponent in path], curve)
        return Outcome([("logistic", f"{top1.value:.2%}", more)], figures, edge, top1.value)


def regress(
    x: Float[Tensor, "image width"],
    labels: Int[Tensor, " image"],
    *,
    penalty: float,
    num_classes: int,
    start: Float[Tensor, "width_and_bias cls"] | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
) -> Float[Tensor, "width_and_bias cls"]:
    """The weights, and in the last row the bias, of least mean cross-entropy plus penalty / 2 |weights|^2."""
    shape = (x.shape[1] + 1, num_classes)
    weights = (x.new_zeros(shape) if start is None else start.detach().clone()).requires_grad_()
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weights[:-1] + weights[-1], labels) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    solver.step(objective)  # pyright: ignore[reportArgumentType] - a tensor serves as its loss
    return weights.detach()
