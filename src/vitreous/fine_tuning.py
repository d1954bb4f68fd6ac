"""Fine-tuning as a measure: the paper's sweep over learning rates (Table 4 and App. B.1.1)."""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from vitreous import metrics
from vitreous.config import BELOW_ONE, check_ranges
from vitreous.console import Console
from vitreous.data.joined import JoinedSource
from vitreous.data.source import Source
from vitreous.data.views import TrainView
from vitreous.errors import InputError
from vitreous.evaluation.base import Evaluation, Labelled, Outcome, at_the_edge, held_back, interval
from vitreous.evaluation.classify import probabilities
from vitreous.evaluation.feature_store import content, digest
from vitreous.evaluation.features import Frozen
from vitreous.files import check_writable, read_text, write_text
from vitreous.objectives.supervised import Supervised, SupervisedObjective
from vitreous.optim import SGD
from vitreous.run import Run
from vitreous.run_folder import RunFolder, locked
from vitreous.schedule import Cosine
from vitreous.training import Diverged, train
from vitreous.vit import divisible_size


@dataclass(frozen=True, kw_only=True)
class FineTune(Evaluation):
    """The whole model, trained further with each learning rate; held-back images choose one, and all are trained on.

    SGD with momentum 0.9 and no decay, gradients clipped to norm 1, a cosine after a linear rise, random crops and
    mirrored images. Defaults are Table 4's for small sets (Pets, Flowers). Interrupted, the same command goes on.
    """

    scored: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    """Peaks to choose from."""
    steps: int = 500
    """Steps of each training; the paper's are 500 for Pets and Flowers, 10,000 for CIFAR, 20,000 for ImageNet."""
    batch_size: int = 512
    """Images a step."""
    image_size: int | None = 384
    """Side of the images, moved to what divides into patches; None keeps the model's own."""
    warmup_ratio: float = 0.2
    """Part of the steps in which the rate rises; the paper's code rises for 100 of 500 and 500 of 10,000."""
    min_area_ratio: float = 0.05
    """Smallest part of an image that a random crop keeps."""
    flip: bool = True
    """Mirror half of the images."""
    seed: int = 0
    """Another seed shuffles, crops and holds back otherwise."""

    def __post_init__(self) -> None:
        check_ranges(self, **dict.fromkeys(("steps", "batch_size", "image_size"), (1, math.inf)), seed=(0, math.inf))
        check_ranges(self, learning_rates=(1e-12, math.inf))
        check_ranges(self, warmup_ratio=(0, BELOW_ONE), min_area_ratio=(0.001, 1))

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        train_images = data.training
        learned, judge = (train_images, data.dev) if data.dev else held_back(train_images, seed=self.seed)
        whole = JoinedSource(train_images, data.dev) if data.dev else train_images
        with ExitStack() as stack:
            if model.cache is None or not _writable(model.cache, console):
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitreous-")))
            else:
                place = model.cache / "fine-tune" / model.model_key()
            grid = [self._trained(learned, judge, rate, model, place, console) for rate in self.learning_rates]
            curve = [float((np.array(predicted) == judge.labels).mean()) for predicted in grid]
            best = int(np.argmax(curve))
            rate = self.learning_rates[best]
            said = np.array(self._trained(whole, data.test, rate, model, place, console))
        top1 = metrics.share(int((said == data.test.labels).sum()), len(said))
        more = f"{interval(top1)}; learning rate {rate:g}, {curve[best]:.2%} of the images that chose it"
        figures = {
            "top1": asdict(top1),
            "learning_rate": rate,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "grid": [{"learning_rate": r, "dev_top1": score} for r, score in zip(self.learning_rates, curve)],
        }
        notes = at_the_edge("learning rate", self.learning_rates, curve)
        if (said < 0).all():
            notes = [f"training with the best learning rate, {rate:g}, diverges; give lower ones"]
        return Outcome([("fine-tune", f"{top1.value:.2%}", more)], figures, notes, top1.value)

    def plan(self, model: Frozen, rate: float) -> Run:
        """The training with one learning rate."""
        config = model.classifier.config
        shape: int | tuple[int, int] = model.view.image_size
        if self.image_size is not None:
            shape = divisible_size(self.image_size, config.encoder.stride)
        view = replace(model.view, image_size=shape)
        shown = {name: getattr(view, name) for name in ("image_size", "interpolation", "mean", "std")}
        return Run(
            train_view=TrainView(min_area_ratio=self.min_area_ratio, flip=self.flip, **shown),
            eval_view=view,
            model=replace(config.encoder, image_size=shape),
            weights=model.name,
            objective=Supervised(pooling=config.pooling),
            optimizer=SGD(weight_decay=0.0, clip_norm=1.0),
            learning_rate=Cosine(peak=rate, warmup_ratio=self.warmup_ratio),
            batch_size=self.batch_size,
            steps=self.steps,
            num_evaluations=0,
            num_workers=model.num_workers,
            seed=self.seed,
        )

    def _trained(
        self, learned: Source, measured: Source, rate: float, model: Frozen, place: Path, console: Console
    ) -> Sequence[int]:
        """The class of each of `measured`, after training on `learned`; known from before where that was done."""
        run = self.plan(model, rate)
        settings = json.dumps({**run.to_dict(), "weights": None, "num_workers": None}, sort_keys=True)
        learned_key = digest([content(learned), str(learned.labels.tolist()), settings]).hex()
        folder = RunFolder(place / f"{rate:g}-{learned_key}")
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.path):
            answer = folder.path / f"predicted-{content(measured).hex()}.json"
            if answer.exists():
                console.say(f"learning rate {rate:g} was tried before")
                return json.loads(read_text(answer))
            size = min(self.batch_size, len(learned))
            seen = run.model.pixels
            console.say(f"learning rate {rate:g}: {self.steps:,} steps of {size} images of {seen}")
            try:
                objective = train(
                    run, learned, held_out=("dev", measured), folder=folder, world=model.world, console=console
                )
            except Diverged:
                console.say(f"learning rate {rate:g} diverges")
                predicted = [-1] * len(measured)
            else:
                assert isinstance(objective, SupervisedObjective)
                scores = probabilities(
                    objective.classifier, measured, run.eval_view, world=model.world, num_workers=model.num_workers
                )
                predicted = scores.argmax(axis=1).tolist()
            try:
                write_text(answer, json.dumps(predicted))
                shutil.rmtree(folder.checkpoints, ignore_errors=True)
            except InputError as error:
                console.say(f"warning: what was trained is not kept: {error}")
            return predicted


def _writable(cache: Path, console: Console) -> bool:
    """Whether trainings can be kept there; says so if not."""
    try:
        check_writable(cache / "fine-tune" / "predicted.json")
    except (InputError, OSError) as error:
        console.say(f"warning: trainings are not kept in {cache}: {error}")
        return False
    return True
