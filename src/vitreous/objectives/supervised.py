"""Supervised classification (ViT, arXiv:2010.11929, Sec. 3.1)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.config import check_ranges
from vitreous.data.batch import Batch
from vitreous.data.mixing import Mixing
from vitreous.errors import InputError
from vitreous.head import Head, LinearHead
from vitreous.objectives.base import Loss, Objective, ObjectiveConfig
from vitreous.pooling import ClassToken, Pooling
from vitreous.tokens import Encoder
from vitreous.weights.product import Product
from vitreous.weights.transplant import fit_encoder


@dataclass(frozen=True, kw_only=True)
class Supervised(ObjectiveConfig):
    """Cross-entropy of class scores."""

    pooling: Pooling = ClassToken()
    """From tokens to one vector."""
    head: Head = LinearHead()
    """From that vector to class scores."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """One choice among all classes, or a yes or no for each (arXiv:2006.07159, Sec. 5), summed over classes; with many
    classes give the latter a `head.bias` of -10."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    mixing: Mixing = Mixing()
    """How training images are mixed with one another."""

    def __post_init__(self) -> None:
        check_ranges(self, label_smoothing=(0, 1))

    def build(self, encoder: Encoder, *, num_classes: int) -> "SupervisedObjective":
        """The objective around a fresh classifier."""
        return SupervisedObjective(self, encoder, num_classes)


class SupervisedObjective(Objective):
    """A classifier and its cross-entropy."""

    def __init__(self, config: Supervised, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.classifier: Classifier = ClassifierConfig(
            encoder=encoder, pooling=config.pooling, head=config.head, num_classes=num_classes
        ).build()

    @property
    def encoder(self) -> nn.Module:
        return self.classifier.encoder

    def start_from(self, product: Product) -> None:
        self.classifier = fit_encoder(self.classifier.config, product)

    def scores(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch cls"]:
        """Class scores before the softmax, in float32 or finer."""
        logits = self.classifier(images)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, batch: Batch, progress: float) -> Loss:
        if batch.labels is None:
            raise InputError("supervised training needs labels, but the data have none; use folders named by class")
        images, targets = batch.images[0], batch.labels
        if self.training and self.config.mixing.used:
            num_classes = self.classifier.config.num_classes
            images, targets = self.config.mixing(images, targets, num_classes=num_classes)
        logits = self.scores(images)
        correct = logits.argmax(-1) == (targets if targets.ndim == 1 else targets.argmax(-1))
        return Loss(self.losses(logits, targets).mean(), {"accuracy": correct.to(logits.dtype).mean()})

    def losses(
        self, logits: Float[Tensor, "batch cls"], targets: Int[Tensor, " batch"] | Float[Tensor, "batch cls"]
    ) -> Float[Tensor, " batch"]:
        """What each image costs; `targets` are classes, or shares of all classes."""
        smoothing = self.config.label_smoothing
        if self.config.loss == "softmax":
            return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        num_classes = logits.shape[-1]
        shares = F.one_hot(targets, num_classes).to(logits.dtype) if targets.ndim == 1 else targets
        shares = shares * (1 - smoothing) + smoothing / num_classes
        return F.binary_cross_entropy_with_logits(logits, shares, reduction="none").sum(-1)
