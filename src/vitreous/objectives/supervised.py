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
from vitreous.data.listing import NO_LABELS, Splits
from vitreous.data.mixing import Mixing
from vitreous.errors import InputError
from vitreous.head import Head, LinearHead
from vitreous.objectives.base import Loss, Objective, ObjectiveConfig
from vitreous.pooling import ClassToken, Pooling
from vitreous.tokens import Encoder
from vitreous.weights.product import Product
from vitreous.weights.transplant import fit_encoder

SEVERAL = (
    "an image of these data may show several classes, but the softmax loss chooses one; give --objective.loss sigmoid"
)


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

    def check(self, data: Splits) -> None:
        train = data.train
        if not train.classes:
            notes = "".join(f"; {note}" for note in data.notes)
            raise InputError(
                f"training a classifier needs labels, which {len(train):,} images lack{notes}: {NO_LABELS}"
            )
        if train.multi_label and self.loss == "softmax":
            raise InputError(SEVERAL)
        if len(train.classes) == 1 and not train.multi_label:
            raise InputError(
                f"the images have one class only ({train.classes[0]}); a classifier needs two or more: "
                "give the folder above, or add a folder for each class"
            )

    def build(self, encoder: Encoder, *, num_classes: int) -> "SupervisedObjective":
        """The objective around a fresh classifier."""
        return SupervisedObjective(self, encoder, num_classes)


ANY_CLASSIFIER = Supervised(loss="sigmoid")
"""What can be trained on images of one class each and of several."""


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
        multi_label = targets.ndim == 2
        if multi_label and self.config.loss == "softmax":
            raise InputError(SEVERAL)
        if self.training and self.config.mixing.used:
            num_classes = self.classifier.config.num_classes
            images, targets = self.config.mixing(images, targets, num_classes=num_classes)
        logits = self.scores(images)
        if multi_label:
            right = ((logits > 0) == (targets > 0.5)).all(-1)
            parts = {"exact_match": right.to(logits.dtype).mean()}
        else:
            right = logits.argmax(-1) == (targets if targets.ndim == 1 else targets.argmax(-1))
            parts = {"accuracy": right.to(logits.dtype).mean()}
        return Loss(self.losses(logits, targets).mean(), parts)

    def losses(
        self, logits: Float[Tensor, "batch cls"], targets: Int[Tensor, " batch"] | Float[Tensor, "batch cls"]
    ) -> Float[Tensor, " batch"]:
        """What each image costs; `targets` are classes, or a number in [0, 1] for each class."""
        smoothing = self.config.label_smoothing
        if self.config.loss == "softmax":
            return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        num_classes = logits.shape[-1]
        shares = (F.one_hot(targets, num_classes) if targets.ndim == 1 else targets).to(logits.dtype)
        shares = shares * (1 - smoothing) + smoothing / num_classes
        return F.binary_cross_entropy_with_logits(logits, shares, reduction="none").sum(-1)
