"""Features of a frozen model, computed once for all that ask, and kept for the next time."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.classifier import Classifier, class_probabilities
from vitreous.console import Console
from vitreous.data.loader import evaluation_batches
from vitreous.data.source import Source
from vitreous.data.views import EvalView
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.evaluation import feature_store
from vitreous.evaluation.feature_store import CHUNK

FORMAT = 1
"""Changes when the same inputs give other features."""
POSITIONLESS = ("pooled", "patches")
"""What depends on the image alone, and not on its position in the source."""

Function = Callable[[Float[Tensor, "batch channel height width_px"], Int[np.ndarray, " batch"]], Tensor]
"""From images and their positions in the source to features."""


@dataclass(frozen=True)
class Features:
    """One row an image, and what the image shows."""

    values: np.ndarray
    """(image, width) float32 of what the head sees, or (image, patch, width) float16 of every patch token."""
    labels: Int[np.ndarray, " image"]

    def select(self, rows: np.ndarray) -> "Features":
        """The images at `rows`, in that order."""
        return Features(self.values[rows], self.labels[rows])


def joined(*parts: Features) -> Features:
    """The images of all parts."""
    return Features(np.concatenate([part.values for part in parts]), np.concatenate([part.labels for part in parts]))


@dataclass(frozen=True)
class Missing:
    """A chunk of images whose features are not known yet."""

    rows: Int[np.ndarray, " image"]
    """Positions in the source."""
    file: Path | None
    """Where they will be kept; None keeps them nowhere."""


class Frozen:
    """A model that is looked through and not trained: images in, features out."""

    def __init__(
        self,
        classifier: Classifier,
        view: EvalView,
        *,
        world: World,
        name: str = "",
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        faster: Classifier | None = None,
        cache: Path | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        console: Console | None = None,
    ) -> None:
        """The model `classifier`; `faster` computes the same function.

        `name` is what it can be opened by again. `classes` names the outputs of the head, None where they mean nothing;
        `multi_label` says that an image may show several of them. `cache` is where features are kept (see
        `feature_store`), None keeps none.
        """
        self.name = name
        self.classes = None if classes is None else tuple(classes)
        self.multi_label = multi_label
        self.classifier, self.view, self.world = classifier.eval(), view, world
        self.answering = faster or classifier
        self.cache, self.batch_size, self.num_workers = cache, batch_size, num_workers
        self.console = console or Console(quiet=True)
        self._weights: bytes | None = None
        self._content: WeakKeyDictionary[Source, dict[int, bytes]] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[Source, dict[str, Features]] = WeakKeyDictionary()

    def pooled(self, source: Source) -> Features:
        """What the head sees of every image of `source`, in its order.

        Raises:
            InputError: if an image cannot be read, or the model gives no numbers for it.
        """
        return self.changed(source, "pooled", lambda images, _: self.answering.features(images))

    def probabilities(self, source: Source, *, mirrored: bool = False) -> Float[np.ndarray, "image cls"]:
        """What the head makes of `pooled`: class probabilities of every image, float64; each row sums to 1, unless
        each class of the model stands by itself.

        With `mirrored`, the mean of those of the image and of its mirror image.
        """
        said = self._said(self.pooled(source))
        if mirrored:
            features = self.answering.features
            said = (
                said + self._said(self.changed(source, "mirrored", lambda images, _: features(images.flip(-1))))
            ) / 2
        return said

    def _said(self, features: Features) -> Float[np.ndarray, "image cls"]:
        rows = []
        with torch.inference_mode(), self.world.autocast():
            for part in np.array_split(features.values, -(-len(features.values) // CHUNK)):
                logits = self.answering.head(torch.from_numpy(part).to(self.world.device))
                rows.append(class_probabilities(logits, multi_label=self.multi_label).numpy())
        return np.concatenate(rows)

    def patches(self, source: Source) -> Features:
        """Every patch token that the encoder returns, in half precision: 2 bytes x width x patches an image.

        Raises:
            InputError: if an image cannot be read, or a token is too large or no number.
        """
        return self.changed(source, "patches", lambda images, _: self.answering.encoder(images).patches.half())

    def changed(self, source: Source, change: str, function: Function) -> Features:
        """What `function` makes of every image of `source`; `change` names it, settings included, for the cache.

        Several processes share the work and get all of it.

        A stopped command loses the features of less than `CHUNK` images.

        Raises:
            InputError: if an image cannot be read, or the model gives no numbers for it.
        """
        of_source = self._known.setdefault(source, {})
        if change in of_source:
            return of_source[change]
        if not len(source):
            raise InputError("features need at least one image, got none")
        chunks, missing = self._look_up(source, change)
        starts = sorted({int(chunk.rows[0]) for theirs in self.world.share(missing) for chunk in theirs})
        dealt = starts[self.world.rank :: self.world.size]
        missing = [self._chunk(source, start, change) for start in dealt]
        chunks = {start: rows for start, rows in chunks.items() if start not in starts}
        found = sum(map(len, chunks.values()))
        if found:
            self.console.say(f"features of {found:,} of {len(source):,} images were computed before")
        todo = np.concatenate([chunk.rows for chunk in missing]) if missing else np.empty(0, np.int64)
        waiting: list[np.ndarray] = []
        with torch.inference_mode(), self.console.task("image", len(source), done=found) as task:
            for values in self._compute(source, todo, function):
                waiting.append(values)
                found += len(values)
                while missing and sum(map(len, waiting)) >= len(missing[0].rows):
                    chunk, rows = missing.pop(0), np.concatenate(waiting)
                    chunks[int(chunk.rows[0])], waiting = rows[: len(chunk.rows)], [rows[len(chunk.rows) :]]
                    self._keep(chunk, chunks[int(chunk.rows[0])])
                task.update(min(found * self.world.size, len(source)))
        own = {start: chunks[start] for start in dealt}
        chunks |= {start: rows for theirs in self.world.share(own) for start, rows in theirs.items()}
        of_source[change] = Features(np.concatenate([chunks[start] for start in sorted(chunks)]), source.labels)
        return of_source[change]

    def seen_by(self, view: EvalView) -> "Frozen":
        """The same model, to which images are shown by another view."""
        other = copy.copy(self)
        other.view, other._known = view, WeakKeyDictionary()
        return other

    def model_key(self) -> str:
        """A digest of all that features depend on, but the images."""
        if self._weights is None:
            self._weights = feature_store.digest(_bytes(self.classifier.state_dict()))
        about = {
            "format": FORMAT,
            "classifier": self.classifier.config.to_dict(),
            "view": self.view.to_dict(),
            "device": self.world.device.type,
            "dtype": str(self.world.dtype),
            "faster": self.answering is not self.classifier,
        }
        return feature_store.digest([json.dumps(about, sort_keys=True), self._weights]).hex()

    def _look_up(self, source: Source, change: str) -> tuple[dict[int, np.ndarray], list[Missing]]:
        """Chunks that are kept, by where they begin, and those that are missing."""
        kept, missing = {}, []
        with self.console.task("image looked up", len(source)) as task:
            for start in range(0, len(source), CHUNK):
                chunk = self._chunk(source, start, change)
                found = None if chunk.file is None else feature_store.read(chunk.file)
                if found is None:
                    missing.append(chunk)
                else:
                    kept[start] = found
                task.update(int(chunk.rows[-1]) + 1)
        return kept, missing

    def _chunk(self, source: Source, start: int, change: str) -> Missing:
        rows = np.arange(start, min(start + CHUNK, len(source)))
        folder = None if self.cache is None else self.cache / self.model_key()
        return Missing(rows, None if folder is None else folder / self._name(source, rows, change))

    def _name(self, source: Source, rows: Int[np.ndarray, " image"], change: str) -> str:
        start, digests = int(rows[0]), self._content.setdefault(source, {})
        if start not in digests:
            digests[start] = feature_store.content(source.select(rows))
        place = "" if change in POSITIONLESS else str(start)
        return f"{feature_store.digest([digests[start], f'{change} {place}']).hex()}.npy"

    def _compute(self, source: Source, rows: Int[np.ndarray, " image"], function: Function) -> Iterator[np.ndarray]:
        """The features of the images at `rows`, batch by batch."""
        for batch in evaluation_batches(
            source.select(rows),
            self.view,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            device=self.world.device,
        ):
            with self.world.autocast():
                values = function(batch.images[0], rows[batch.index.cpu().numpy()])
            found = (values if values.dtype == torch.float16 else values.float()).cpu().numpy()
            if not np.isfinite(found).all():
                half = ", or too large for half precision" if found.dtype == np.float16 else ""
                raise InputError(
                    f"the model gives no numbers for some images (infinite or NaN{half}); its weights are broken"
                )
            yield found

    def _keep(self, chunk: Missing, rows: np.ndarray) -> None:
        """Write a chunk, if the disk takes it."""
        if chunk.file is None or self.cache is None:
            return
        try:
            feature_store.write(chunk.file, rows)
        except InputError as error:
            self.console.say(f"warning: features are not kept: {error}")
            self.cache = None


def _bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Name, kind and numbers of each tensor."""
    for name, tensor in sorted(tensors.items()):
        yield f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode()
        yield tensor.detach().float().cpu().contiguous().numpy().tobytes()
