"""A training run, as data: everything needed to repeat it."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from vitreous.checkpoint import CheckpointConfig
from vitreous.config import BELOW_ONE, Config, check_ranges
from vitreous.data.data_config import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.distributed import Precision
from vitreous.errors import InputError
from vitreous.objectives.base import ObjectiveConfig
from vitreous.objectives.supervised import Supervised
from vitreous.optim import AdamW, OptimizerConfig
from vitreous.parallel import Parallel, Replicate
from vitreous.schedule import Cosine, Schedule
from vitreous.tokens import Encoder
from vitreous.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Run(Config):
    """One training run: everything needed to repeat it."""

    data: DataConfig = DataConfig()
    """Which images."""
    train_view: TrainView = TrainView()
    """How an image is shown in training."""
    eval_view: EvalView = EvalView()
    """How an image is shown when it is measured; travels with the model."""
    model: Encoder = ViTConfig()
    """The encoder."""
    weights: str | None = None
    """Where the encoder starts from: a run, a product folder, a weights file or a prefixed name."""
    objective: ObjectiveConfig = Supervised()
    """What the encoder is trained to do."""
    optimizer: OptimizerConfig = AdamW()
    """What moves the weights."""
    learning_rate: Schedule = Cosine()
    """Learning rate over the run."""
    batch_size: int = 64
    """Images a step, over all processes."""
    num_micro_batches: int | None = None
    """Equal parts into which each batch is cut; a process computes its share of them one after another (gradient
    accumulation). By default one a process."""
    num_repeats: int = 1
    """Views of each image in a step, drawn one by one (arXiv:1901.09335): a step shows `batch_size` views."""
    grow_from: float = 1.0
    """Side of training images at first, as a part of `train_view.image_size`; it grows by whole patches (progressive
    resizing, arXiv:2104.00298, Sec. 4.2)."""
    grow_until: float = 0.8
    """Fraction of training after which they have their full size."""
    steps: int = 1000
    """Optimizer steps."""
    num_evaluations: int = 10
    """Times held-out images are measured during training; nothing is chosen by these measurements."""
    num_evaluation_images: int = 2000
    """Most held-out images measured each of these times, evenly spaced; at the end all are."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written and which are kept."""
    num_workers: int = 0
    """Processes that read images; the batches are the same for any number."""
    cache_gb: float = 0.0
    """Most GB that decoded and resized training images may take in the run's folder until training ends; 0 keeps none.
    Needs a view of which chance only cuts: `train_view.margin`, or a `train_view.min_area_ratio` of 1."""
    parallel: Parallel = Replicate()
    """How the weights lie on several processes."""
    exact: bool = False
    """Whether gradients of micro-batches are added in one fixed tree, so that the result has the same bits however many
    processes computed it; needs `num_micro_batches`, a power of two."""
    precision: Precision = "auto"
    """What matrix products are computed in: by default bfloat16 on GPUs that have it, else float32."""
    activation_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass: slower by a third, in much less memory."""
    compile: bool = False
    """Whether torch compiles the blocks."""
    ema_decay: float | None = None
    """Share of a moving average of the weights that a step leaves, such as 0.9999; the average is the result."""
    max_skipped_steps: int = 0
    """Steps in a row that may be left out because their loss or gradient is not finite, before training stops."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that hear of the run besides TensorBoard, whose files are always written."""
    seed: int = 0
    """Source of every random choice."""

    def __post_init__(self) -> None:
        positive = ("batch_size", "num_repeats", "steps", "num_evaluation_images")
        natural = ("num_evaluations", "num_workers", "max_skipped_steps", "seed")
        check_ranges(self, **dict.fromkeys(positive, (1, math.inf)), **dict.fromkeys(natural, (0, math.inf)))
        check_ranges(self, num_micro_batches=(1, math.inf), ema_decay=(0, BELOW_ONE))
        check_ranges(self, grow_from=(0.01, 1), grow_until=(0.01, 1))
        check_ranges(self, cache_gb=(0, math.inf))
        self.micro_batches(self.num_micro_batches or 1)
        try:
            self.model.check_image(*self.train_view.shape)
        except InputError as error:
            raise InputError(f"train_view.image_size {self.train_view.image_size}: {error}") from None
        if self.eval_view.shape != self.model.image_shape:
            raise InputError(
                f"eval_view.image_size {self.eval_view.image_size} is not model.image_size {self.model.image_size}; "
                "only train_view may have another"
            )
        if self.optimizer.needs_whole_matrices and not isinstance(self.parallel, Replicate):
            raise InputError(
                f"{type(self.optimizer).__name__} needs whole matrices, which {type(self.parallel).__name__} divides; "
                "give --parallel Replicate, or --optimizer AdamW"
            )
        if self.cache_gb and (self.train_view.still is None or self.grow_from < 1):
            reason = "grow_from resizes them by step" if self.grow_from < 1 else "chance says what is resized"
            raise InputError(
                f"cache_gb keeps images that are resized once, but {reason}; "
                + (
                    "leave one of the two out"
                    if self.grow_from < 1
                    else "give --train_view.margin 0.15, or no cache_gb"
                )
            )
        if self.model.channels != 3:
            raise InputError(f"model.channels is {self.model.channels}; images have 3")

    @property
    def log_every(self) -> int:
        """Steps between two lines of metrics.jsonl."""
        return max(1, min(50, self.steps // 200))

    def micro_batches(self, processes: int) -> int:
        """Parts of a batch, with that many processes.

        Raises:
            InputError: if the parts would not be equal.
        """
        parts = self.num_micro_batches or processes
        if parts % processes:
            raise InputError(
                f"{processes} processes cannot share {parts} micro-batches equally; start a number of processes that "
                f"divides {parts}, or give another --num_micro_batches"
            )
        if self.batch_size % (parts * self.num_repeats):
            shown = f", with {self.num_repeats} views of each image," if self.num_repeats > 1 else ""
            raise InputError(
                f"batch_size {self.batch_size}{shown} cannot be cut into {parts} equal parts; "
                f"take a multiple of {parts * self.num_repeats}"
            )
        if self.exact and (self.num_micro_batches is None or parts & (parts - 1)):
            raise InputError(
                f"exact needs num_micro_batches, a power of two that the number of processes divides, "
                f"not {self.num_micro_batches}"
            )
        return parts

    def shape_at(self, step: int) -> tuple[int, int]:
        """Height and width of the training images of a step, in pixels."""
        whole = self.train_view.shape
        part = self.grow_from + (1 - self.grow_from) * step / (self.steps * self.grow_until)
        if part >= 1:
            return whole
        height, width = (max(round(part * side / self.model.stride), 1) * self.model.stride for side in whole)
        return min(height, whole[0]), min(width, whole[1])

    def essence(self) -> dict[str, Any]:
        """The config as JSON types, without what may change when a run goes on: it changes no result."""
        free = ("num_workers", "cache_gb", "checkpoint", "parallel", "activation_checkpointing", "trackers")
        return {name: value for name, value in self.to_dict().items() if name not in free}

    def identity(self, fingerprint: str) -> str:
        """Equal for runs that give equal checkpoints, on data with that fingerprint."""
        text = json.dumps([self.essence(), fingerprint], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
