"""Features made up of clusters, in place of a model and images."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from vitreous import distributed
from vitreous.console import Console
from vitreous.data.source import ArraySource
from vitreous.evaluation.base import Evaluation, Labelled, Outcome
from vitreous.evaluation.features import Features

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Known:
    """Features of a training and a test set, and what an evaluation is given in their place."""

    train: Features
    test: Features
    dev: Features | None
    classes: tuple[str, ...]

    def evaluated(self, evaluation: Evaluation) -> Outcome:
        """What `evaluation` finds."""
        parts = {"train": self.train, "test": self.test, "dev": self.dev}
        sources = {name: None if part is None else self._source(part, name) for name, part in parts.items()}
        known = {id(sources[name]): part for name, part in parts.items() if part is not None}

        def features(source: ArraySource) -> Features:
            return known[id(source)]

        model = SimpleNamespace(pooled=features, patches=features, world=distributed.start(device="cpu", threads=1))
        data = Labelled(sources["train"], sources["test"], "test", sources["dev"])
        return evaluation.run(model, data, console=QUIET)  # pyright: ignore[reportArgumentType]

    def _source(self, part: Features, name: str) -> ArraySource:
        pixels = np.zeros((len(part.labels), 2, 2), np.uint8)
        return ArraySource(pixels, prefix=name, classes=self.classes, labels=part.labels)


def clusters(
    *, train: int = 90, test: int = 60, width: int = 12, num_classes: int = 3, patches: int = 0, dev: int = 0
) -> Known:
    """Overlapping clusters around a random centre for each class; of `patches` tokens each shows a class, and
    the one that shows the image's own is marked."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(num_classes, width))

    def draw(count: int) -> Features:
        labels = np.arange(count) % num_classes
        if not patches:
            values = centres[labels] + random.normal(size=(count, width)) * 1.2
            return Features((values * random.uniform(0.5, 2, width) + 1).astype(np.float32), labels)
        shown = random.integers(0, num_classes, (count, patches))
        telling = random.integers(0, patches, count)
        shown[np.arange(count), telling] = labels
        values = centres[shown] + random.normal(size=(count, patches, width)) * 0.5
        values[..., 0] = np.where(np.arange(patches) == telling[:, None], 3, -3)
        return Features(values.astype(np.float16), labels)

    return Known(draw(train), draw(test), draw(dev) if dev else None, tuple("abcdefghij"[:num_classes]))
