"""Weighted nearest neighbours on frozen features (DINO, arXiv:2104.14294, App. F.1; Wu et al., arXiv:1805.01978)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitreous import metrics
from vitreous.config import check_ranges
from vitreous.console import Console
from vitreous.errors import InputError
from vitreous.evaluation.base import Evaluation, Labelled, Outcome, interval
from vitreous.evaluation.features import Features, Frozen, joined

QUERIES = 256
"""Images compared to all training images at a time."""


@dataclass(frozen=True, kw_only=True)
class KNN(Evaluation):
    """The k most similar training images vote, each with exp(cosine / temperature)."""

    scored: ClassVar[bool] = True
    ks: tuple[int, ...] = (10, 20, 100, 200)
    """Neighbours that vote."""
    temperature: float = 0.07
    """A small one lets the nearest decide."""

    def __post_init__(self) -> None:
        check_ranges(self, ks=(1, math.inf), temperature=(1e-3, math.inf))

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        train, test = model.pooled(data.training), model.pooled(data.test)
        if data.dev is not None:  # nothing is chosen, so these can vote
            train = joined(train, model.pooled(data.dev))
        ks = [k for k in self.ks if k <= len(train.labels)]
        if not ks:
            raise InputError(
                f"knn: there are {len(train.labels)} training images for {min(self.ks)} neighbours; give more images"
            )
        left = [f"no {k} neighbours: there are {len(train.labels)} training images" for k in self.ks if k not in ks]
        votes = self.votes(train, test, ks=ks, num_classes=len(data.classes), device=model.world.device)
        rows, figures = [], {}
        for k, shares in zip(ks, votes):
            top1 = metrics.share(metrics.hits_at(shares, test.labels, k=1), len(test.labels))
            rows.append((f"{k}-NN", f"{top1.value:.2%}", interval(top1)))
            figures[str(k)] = {"top1": asdict(top1)}
            if len(data.classes) > 5:
                figures[str(k)]["top5"] = metrics.hits_at(shares, test.labels, k=5) / len(test.labels)
        score = figures[str(20 if 20 in ks else max(ks))]["top1"]["value"]  # 20 is DINO's best
        return Outcome(rows, {"temperature": self.temperature, "k": figures}, left, score)

    def votes(
        self, train: Features, test: Features, *, ks: Sequence[int], num_classes: int, device: torch.device
    ) -> list[Float[np.ndarray, "image cls"]]:
        """For each k, the share of the votes that each class gets for every image of `test`."""
        known = F.normalize(torch.from_numpy(train.values).to(device), dim=1)
        labels = torch.from_numpy(train.labels).to(device)
        found: list[list[np.ndarray]] = [[] for _ in ks]
        for start in range(0, len(test.labels), QUERIES):
            queries = F.normalize(torch.from_numpy(test.values[start : start + QUERIES]).to(device), dim=1)
            cosines, nearest = (queries @ known.T).topk(max(ks), dim=1)  # best first
            weights = ((cosines - cosines[:, :1]) / self.temperature).exp()  # a factor for all, so that none overflows
            for k, shares in zip(ks, found):
                shares.append(_tally(weights[:, :k], labels[nearest[:, :k]], num_classes).cpu().numpy())
        return [np.concatenate(shares) for shares in found]


def _tally(weights: Float[Tensor, "image k"], labels: Tensor, num_classes: int) -> Float[Tensor, "image cls"]:
    total = weights.new_zeros(len(weights), num_classes).scatter_add(1, labels, weights)
    return total / total.sum(dim=1, keepdim=True)
