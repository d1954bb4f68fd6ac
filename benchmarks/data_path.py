"""CPU time from the bytes of a photo to the pixels of a training view: ours beside others, on one core.

    python benchmarks/data_path.py [FOLDER_OR_TAR...] [--rounds 15] [--out benchmarks/results/data_path.json]

Every peer gives a random part of 224 x 224 pixels, mirrored or not, of the same files, which are in memory; they take
turns in random order, round after round, one thread each. What counts is CPU time of the process; ratios are taken
within a round. The photos are parts of scikit-learn's two sample photos, resized, with grain, quality 90: 500 x 375 as
in ImageNet, and 12 MP as of a phone. What handing out costs is CPU time of the main process for each image that two
workers made, without what the device does (normalising), and what one process does beside `View.read`.

With a margin of 0.15 a view is cut from the whole image, resized once to just cover 258 pixels: `Run.cache_gb` keeps
that in a file, and the views from it are the same to the bit. It is another augmentation than a random area.

Expected before the run: beside torchvision's ImageFolder default (Pillow, bilinear, float32) 2.1 for ours at 500 x 375,
1.4 without simplejpeg, as Pillow's decoding remains; more for 12 MP, since those are decoded at a fraction; timm 1.0 to
1.2, torchvision's v2 on decoded bytes 1.5. The loader: under 10 % of decoding. From the cache 60 to 80 at 500 x 375: of
5.6 ms on a Xeon, 0.03 remain for a generator, 0.02 for the draws, 0.02 for the copy and 0.01 for the mirror; 20 with
the floats of one image (0.2 ms); the same views from the files 2.2, for the whole image is decoded.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

import numpy as np
import torch
from PIL import Image

from vitreous.data import fast_jpeg
from vitreous.data.layouts import open_data
from vitreous.data.loader import training_batches
from vitreous.data.pixel_cache import Cache
from vitreous.data.source import Source
from vitreous.data.views import TrainView
from vitreous.data.vtab.copies import HeldSource
from vitreous.doctor import examine
from vitreous.files import write_text
from vitreous.provenance import installed
from vitreous.seeding import generator
from vitreous.tables import table

SEED, SIDE = 0, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT, OURS, PLAIN = "torchvision, ImageFolder's default", "vitreous", "vitreous without simplejpeg"
MARGIN = TrainView(image_size=SIDE, margin=0.15)
CACHED, FLOATS = "vitreous, margin, cache_gb", "vitreous, margin, cache_gb, float32"
MADE = {"500 x 375": (500, 375, 200), "12 MP": (4000, 3000, 6)}

Peer = Callable[[Source, int], Any]


def peers() -> dict[str, Peer]:
    """What gives the view of an image, by name."""
    from timm.data.transforms_factory import create_transform
    from torchvision import transforms
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    def ours(view: TrainView) -> Peer:
        epoch = count()
        return lambda source, i: view.read(source, i, generator(SEED, "augment", next(epoch), i))

    def floats(peer: Peer) -> Peer:
        return lambda source, i: MARGIN.normalise(peer(source, i))

    def image(source: Source, i: int) -> Image.Image:
        return Image.open(io.BytesIO(source.read(i))).convert("RGB")

    crop, flip = transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip()
    default = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    uint8 = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])
    settings = {"color_jitter": None, "auto_augment": None, "interpolation": "bicubic", "use_prefetcher": True}
    timms: Any = create_transform(SIDE, is_training=True, **settings)

    def decoded(source: Source, i: int) -> torch.Tensor:
        return decode_image(torch.frombuffer(bytearray(source.read(i)), dtype=torch.uint8), mode=ImageReadMode.RGB)

    return {
        DEFAULT: lambda source, i: default(image(source, i)),
        OURS: ours(TrainView(image_size=SIDE)),
        "vitreous, bilinear": ours(TrainView(image_size=SIDE, interpolation="bilinear")),
        PLAIN: ours(TrainView(image_size=SIDE)),
        "vitreous, margin": ours(MARGIN),
        CACHED: ours(MARGIN),
        FLOATS: floats(ours(MARGIN)),
        "torchvision v2, uint8": lambda source, i: uint8(decoded(source, i)),
        "timm, bicubic, uint8": lambda source, i: timms(image(source, i)),
        "simplejpeg decodes, no more": lambda source, i: decoder()(source.read(i), "RGB"),
    }


def decoder() -> Callable[..., Any]:
    """simplejpeg, which this needs."""
    from simplejpeg import decode_jpeg

    return decode_jpeg


def make(folder: Path, width: int, height: int, number: int) -> Path:
    """A folder with photos of about that size."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(SEED)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for i in range(number):
        photo, part = photos[i % 2], rng.uniform(0.5, 0.95)
        wide, high = round(part * photo.width), round(part * photo.height)
        left, top = int(rng.integers(photo.width - wide)), int(rng.integers(photo.height - high))
        size = [round(side * rng.uniform(0.85, 1.15)) for side in (width, height)][:: -1 if rng.random() < 0.25 else 1]
        sized = photo.resize((size[0], size[1]), Image.Resampling.BICUBIC, (left, top, left + wide, top + high))
        grain = rng.normal(0, 4, (size[1], size[0], 1))
        pixels = (np.asarray(sized) * rng.uniform(0.8, 1.15, 3) + grain).clip(0, 255).astype(np.uint8)
        path = folder / f"class{i % 2}" / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return folder


def measure(source: Source, cached: Source, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU an image, round by round, of every peer; `cached` are the same images with a cache."""
    order, turns = random.Random(SEED), {name: [] for name in peers()}
    found = list(peers().items())
    for _ in range(rounds):
        for name, peer in order.sample(found, len(found)):
            absent = mock.patch.object(fast_jpeg, "_decoder", return_value=None)
            circumstances: AbstractContextManager = absent if name == PLAIN else nullcontext()
            images = cached if name in (CACHED, FLOATS) else source
            with circumstances:
                peer(images, 0)
                began = time.process_time()
                for i in range(len(images)):
                    peer(images, i)
                turns[name].append((time.process_time() - began) / len(source))
    return turns


class Unnormalised(TrainView):
    """A view whose last part, which is for the device, costs nothing."""

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images


def handing_out(source: Source, cached: Source) -> dict[str, float]:
    """Seconds of CPU that an image costs in the main process of two workers, in one process, and so from a cache."""
    random, cut = Unnormalised(image_size=SIDE), Unnormalised(image_size=SIDE, margin=MARGIN.margin)
    cases = {
        "main process": (source, random, 2),
        "one process": (source, random, 0),
        "one process, cache_gb": (cached, cut, 0),
        "one process, cache_gb, float32": (cached, MARGIN, 0),
    }
    found = {}
    for name, (images, view, num_workers) in cases.items():
        steps = max(33, 2 * len(source) // 32)
        batches = training_batches(
            images, view, batch_size=32, seed=SEED, first_step=0, steps=steps, num_workers=num_workers
        )
        next(batches)
        began = time.process_time()
        number = sum(len(batch.index) for batch in batches)
        found[name] = (time.process_time() - began) / number
    return found


def compared(turns: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Every peer beside the default, the fastest first."""
    rows = []
    for peer, mine in turns.items():
        ratios = [other / own for other, own in zip(turns[DEFAULT], mine)]
        low, middle, high = (float(np.quantile(ratios, part)) for part in (0.1, 0.5, 0.9))
        rows.append({"peer": peer, "ms": statistics.median(mine) * 1000, "ratio": middle, "low": low, "high": high})
    return sorted(rows, key=lambda row: -row["ratio"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="real photos, measured as well")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=200, help="of each folder or tar that is given")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    given = parser.parse_args()

    torch.set_num_threads(1)
    random.seed(SEED)
    torch.manual_seed(SEED)  # the crops of torchvision and timm
    held, sets = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in MADE.items():
            held[name] = HeldSource(open_data(str(make(Path(folder) / name, *size))).train)
    for path in given.data:
        source = open_data(path).train
        chosen = np.linspace(0, len(source) - 1, min(given.images, len(source))).astype(int)
        held[Path(path).name] = HeldSource(source.select(chosen))
    for name, source in held.items():
        kib = sum(len(source.read(i)) for i in range(len(source))) / len(source) / 1024
        with tempfile.TemporaryDirectory() as folder:
            assert MARGIN.still is not None
            cache = Cache(Path(folder) / "cache", source, MARGIN.still, fingerprint=name)
            began = time.process_time()
            cache.write(most_gb=4)
            written = (time.process_time() - began) / len(source) * 1000
            turns = measure(source, cache.open(), rounds=given.rounds)
            rows, handing = compared(turns), {where: s * 1000 for where, s in handing_out(source, cache.open()).items()}
        sets[name] = {"images": len(source), "kib": kib, "rows": rows, "handing_out_ms": handing, "turns": turns}
        sets[name]["writing_cache_ms"] = written
        print(f"\n{name}: {len(source)} files of {kib:,.0f} KiB, {given.rounds} rounds")
        cells = [
            (row["peer"], f"{row['ms']:.2f}", f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}")
            for row in rows
        ]
        print(table([("view", "CPU ms", "x default", "in 8 of 10 rounds"), *cells]))
        print("loader:", ", ".join(f"{where} {ms:.3f} ms an image" for where, ms in handing.items()))
        print(f"writing the cache: {written:.2f} ms an image", flush=True)
    if given.out is not None:
        facts = {key: value for key, value in examine().items() if "disk" not in key and "cache" not in key}
        facts.update(installed(["simplejpeg", "torchvision", "pillow", "timm"]))
        date = datetime.now(UTC).date().isoformat()
        result = {"date": date, "machine": platform.machine(), "seed": SEED, "sets": sets, **facts}
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
