"""Supervised classification (ViT, arXiv:2010.11929, Sec. 3.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.config import check_ranges
from vitreous.data.batch import Batch
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
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""

    def __post_init__(self) -> None:
        check_ranges(self, label_smoothing=(0, 1))

    def build(self, encoder: Encoder, *, num_classes: int) -> "SupervisedObjective":
        """The objective around a fresh classifier."""
        return SupervisedObjective(self, encoder, num_classes)


class SupervisedObjective(Objective):
    """A classifier and its cross-entropy."""

    def __init__(self, config: Supervised, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.label_smoothing = config.label_smoothing
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
        logits = self.scores(batch.images[0])
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return Loss(loss, {"accuracy": (logits.argmax(-1) == batch.labels).to(logits.dtype).mean()})
