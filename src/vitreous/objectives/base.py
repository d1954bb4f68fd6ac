"""The contract between an objective and the training loop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config
from vitreous.data.batch import Batch
from vitreous.data.listing import Splits
from vitreous.tokens import Encoder
from vitreous.weights.product import Product


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """Which objective, and its settings."""

    def check(self, data: Splits) -> None:
        """Nothing, if the objective can be trained on `data`; asked before any image is looked at.

        Raises:
            InputError: if not; says what is needed.
        """

    @abstractmethod
    def build(self, encoder: Encoder, *, num_classes: int) -> "Objective":
        """The objective around a fresh encoder; `num_classes` is what the data hold, 0 without labels."""


@dataclass
class Loss:
    """What one batch cost."""

    total: Float[Tensor, ""]
    """The number to descend, in float32."""
    parts: dict[str, Float[Tensor, ""]]
    """Detached numbers to log, such as accuracy."""


class Objective(nn.Module, ABC):
    """An encoder plus whatever its training needs: heads, decoders, teachers."""

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The product of training; what is evaluated, exported and served."""

    @abstractmethod
    def start_from(self, product: Product) -> None:
        """Take over the trained encoder of `product`, at step 0.

        Raises:
            InputError: if it is of another shape.
        """

    @abstractmethod
    def forward(self, batch: Batch, progress: float) -> Loss:
        """The loss of `batch` after `progress` in [0, 1] of training."""

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step, also one whose numbers were not finite and that changed nothing.

        A self-distilling objective moves its teacher here.
        """
