"""Features of a frozen model, computed once: kept on disk by the content of images and weights.

An entry is the rows of up to `CHUNK` images. Its name is a digest of all that they depend on: the tensors and the
config of the model, the view, the precision, and the bytes of each image in order. Equal work is found again whatever
the files are called now; a stopped command loses one chunk at most; an entry that has changed on the disk is computed
again.
"""

import copy
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.console import Console
from vitreous.data.loader import evaluation_batches
from vitreous.data.source import Source
from vitreous.data.views import EvalView
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.files import write_bytes
from vitreous.packing import pays
from vitreous.weights.hub import cache_folder

CHUNK = 1024
"""Images an entry holds."""
FORMAT = 1
"""Changes when the same inputs give other features."""
DIGEST_BYTES = 16

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
class Entry:
    """Rows of the cache that are not there yet."""

    rows: Int[np.ndarray, " image"]
    """Positions in the source."""
    file: Path | None
    """Where they are kept; None keeps them nowhere."""


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
        faster: Classifier | None = None,
        cache: Path | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        console: Console | None = None,
    ) -> None:
        """The model `classifier`; `faster` computes the same function.

        `name` is what it can be opened by again. `classes` names the outputs of the head, None where they mean nothing.
        `cache` is where features are kept, None keeps none.
        """
        self.name = name
        self.classes = None if classes is None else tuple(classes)
        self.classifier, self.view, self.world = classifier.eval(), view, world
        self.answering = faster or classifier
        self.cache, self.batch_size, self.num_workers = cache, batch_size, num_workers
        self.console = console or Console(quiet=True)
        self._key: str | None = None
        self._known: dict[tuple[int, str], tuple[Source, Features]] = {}

    def pooled(self, source: Source) -> Features:
        """What the head sees of every image of `source`, in its order.

        Raises:
            InputError: if an image cannot be read, or the model gives no numbers for it.
        """
        return self.changed(source, "pooled", lambda images, _: self.answering.features(images))

    def probabilities(self, source: Source) -> Float[np.ndarray, "image cls"]:
        """What the head makes of `pooled`: class probabilities of every image, float64, each row sums to 1."""
        rows = []
        with torch.inference_mode(), self.world.autocast():
            for part in np.array_split(self.pooled(source).values, -(-len(source) // CHUNK)):
                logits = self.answering.head(torch.from_numpy(part).to(self.world.device))
                rows.append(logits.float().cpu().double().softmax(-1).numpy())  # Apple GPUs have no float64
        return np.concatenate(rows)

    def patches(self, source: Source) -> Features:
        """Every patch token that the encoder returns, in half precision: 2 bytes x width x patches an image.

        Raises:
            InputError: if an image cannot be read, or the model gives no numbers for it.
        """
        return self.changed(source, "patches", lambda images, _: self.answering.encoder(images).patches.half())

    def changed(self, source: Source, change: str, function: Function) -> Features:
        """What `function` makes of every image of `source`; `change` names it, settings included, for the cache.

        Raises:
            InputError: if an image cannot be read, or the model gives no numbers for it.
        """
        if (known := self._known.get((id(source), change))) is not None:
            return known[1]
        if not len(source):
            raise InputError("features need at least one image, got none")
        chunks, entries = self._kept(source, change)
        found = sum(map(len, chunks.values()))
        if found:
            self.console.say(f"features of {found:,} of {len(source):,} images were computed before")
        missing = np.concatenate([entry.rows for entry in entries]) if entries else np.empty(0, np.int64)
        with torch.inference_mode(), self.console.task("image", len(source), done=found) as task:
            waiting: list[np.ndarray] = []
            for values in self._computed(source, missing, function):
                waiting.append(values)
                done = sum(map(len, chunks.values())) + sum(map(len, waiting))
                while entries and sum(map(len, waiting)) >= len(entries[0].rows):
                    entry, rows = entries.pop(0), np.concatenate(waiting)
                    chunks[entry.rows[0]], waiting = rows[: len(entry.rows)], [rows[len(entry.rows) :]]
                    self._keep(entry, chunks[entry.rows[0]])
                task.update(done)
        features = Features(np.concatenate([chunks[start] for start in sorted(chunks)]), source.labels)
        self._known[id(source), change] = source, features  # the source too, or its id could become another's
        return features

    def seen_by(self, view: EvalView) -> "Frozen":
        """The same model, to which images are shown by another view."""
        other = copy.copy(self)
        other.view, other._key, other._known = view, None, {}
        return other

    def _kept(self, source: Source, change: str) -> tuple[dict[int, np.ndarray], list[Entry]]:
        """Rows that are kept, by where they begin, and the entries that are missing."""
        kept, missing = {}, []
        with self.console.task("image looked up", len(source)) as task:
            for start in range(0, len(source), CHUNK):
                rows = np.arange(start, min(start + CHUNK, len(source)))
                file = None
                if self.cache is not None:
                    file = self.cache / self.model_key() / _file_name(source.select(rows), change, start)
                    if (found := _read(file)) is not None:
                        kept[start] = found
                        continue
                missing.append(Entry(rows, file))
                task.update(int(rows[-1]) + 1)
        return kept, missing

    def _computed(self, source: Source, rows: np.ndarray, function: Function) -> Iterator[np.ndarray]:
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
                raise InputError("the model gives no numbers for some images (infinite or NaN); its weights are broken")
            yield found

    def _keep(self, entry: Entry, rows: np.ndarray) -> None:
        if entry.file is None or self.cache is None:
            return
        file = io.BytesIO()
        np.save(file, rows, allow_pickle=False)
        try:
            write_bytes(entry.file, file.getvalue() + _digest(file.getvalue()))
        except InputError as error:
            self.console.say(f"warning: features are not kept: {error}")
            self.cache = None

    def model_key(self) -> str:
        """A digest of all that features depend on, but the images."""
        if self._key is None:
            said = {
                "format": FORMAT,
                "classifier": self.classifier.config.to_dict(),
                "view": self.view.to_dict(),
                "device": self.world.device.type,
                "dtype": str(self.world.dtype),
                "packed": pays(self.world.device),
            }
            digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=DIGEST_BYTES)
            for name, tensor in sorted(self.classifier.state_dict().items()):
                digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
            self._key = digest.hexdigest()
        return self._key


def feature_cache() -> Path:
    """Where features are kept unless told otherwise: features/ in the folder of VITREOUS_CACHE."""
    return cache_folder() / "features"


def content_key(source: Source, about: str) -> str:
    """A digest of the bytes of every image in order, and of `about`."""
    digest = hashlib.blake2b(f"{about} {type(source).__name__}".encode(), digest_size=DIGEST_BYTES)
    for i in range(len(source)):
        digest.update(_digest(source.read(i)))
    return digest.hexdigest()


def _file_name(part: Source, change: str, start: int) -> str:
    """The file name for these images; their positions count where a change may depend on them."""
    place = "" if change in ("pooled", "patches") else str(start)
    return f"{content_key(part, f'{change} {place}')}.npy"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _read(entry: Path) -> np.ndarray | None:
    """The rows of an entry; None if there is none, or its bytes are no longer those that were written."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    if _digest(data[:-DIGEST_BYTES]) != data[-DIGEST_BYTES:]:
        return None
    return np.load(io.BytesIO(data[:-DIGEST_BYTES]), allow_pickle=False)
