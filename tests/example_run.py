"""A finished run made up in milliseconds, written by the functions that real runs are written by."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.data.source import ArraySource, FileSource, Source
from vitreous.data.views import EvalView
from vitreous.evaluation.classify import predictions_csv, scores
from vitreous.provenance import describe_run
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.vit import ViTConfig

ENCODER = ViTConfig(patch_size=4, width=32, depth=2, num_heads=4, mlp_dim=64, image_size=16)
VIEW = EvalView(image_size=16, crop_ratio=1.0)


def example_run(
    folder: Path, *, classes: tuple[str, ...] = ("cat", "dog", "eel"), num_images: int = 60, side: int = 20
) -> dict[str, Source]:
    """Write a run folder of random images and predictions; its splits are returned as `reopen` does."""
    rng = np.random.default_rng(0)
    data: dict[str, Source] = {}
    predicted = {}
    for split, count in (("train", num_images), ("test", num_images // 2)):
        labels = np.arange(count) % len(classes)
        pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        data[split] = ArraySource(pixels, prefix=split, classes=classes, labels=labels)
        logits = rng.normal(size=(count, len(classes))) * 2
        logits[np.arange(count), labels] += 3
        predicted[split] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    write_run(folder, data, predicted=predicted)
    return data


def write_run(folder: Path, data: Mapping[str, Source], *, predicted: dict[str, np.ndarray]) -> None:
    """Everything a finished run leaves, but the model."""
    run, classes = RunFolder(folder), data["test"].classes
    folder.mkdir(parents=True, exist_ok=True)
    counts = {s: np.bincount(source.labels, minlength=len(classes)).tolist() for s, source in data.items()}
    copies = [{"split": "train", "name": data["train"].name(i)} for i in (0, 1)]
    summary = {
        "path": "photos/",
        "num_images": sum(map(len, data.values())),
        "splits": {split: dict(zip(classes, numbers)) for split, numbers in counts.items()},
        "classes": list(classes),
        "sizes": {side: {"min": 20, "median": 20.0, "max": 24} for side in ("width", "height")},
        "formats": {"JPEG": 90},
        "modes": {"RGB": 90},
        "rotated": 2,
        "bad": {
            "count": 1,
            "first": [{"name": "cat/broken.jpg", "split": "train", "reason": "ends too soon"}],
        },
        "duplicates": {"within": {"count": 1, "first": [copies]}},
        "excluded": 1,
        "notes": ["30 of 90 images are held out as test (seed 0)"],
    }
    run.write_record(
        {
            **describe_run(Run(model=ENCODER, eval_view=VIEW), seed=7),
            "command": "vitreous fit photos/",
            "classes": list(classes),
            "data": summary,
            "data_fingerprint": "0123abcd",
            "plan": ["  model    ViT 32x2/4, from scratch", "  recipe   AdamW, 400 steps"],
        }
    )
    for step in range(4, 404, 4):
        loss = 2.0 / (1 + step / 40)
        line = {"loss": loss, "accuracy": 1 - loss / 2, "learning_rate": 1e-3 * (1 - step / 404)}
        run.append({"split": "train", "step": step, **line, "images_per_s": 250.0, "seconds": step / 2})
        if step % 100 == 0:
            run.append(
                {
                    "split": "test",
                    "step": step,
                    "loss": loss + 0.1,
                    "top1": 0.9 - loss / 2,
                    "seconds": step / 2,
                }
            )
    figures = scores(predicted["test"], data["test"].labels, classes=classes, split="test")
    run.evaluation.write_text(json.dumps({**figures, "seconds": 1.0}), "utf-8")
    parts = {split: (source, list(range(len(source))), predicted[split]) for split, source in data.items()}
    text = predictions_csv(parts, classes=classes)
    run.predictions.write_bytes(text.encode("utf-8", "surrogateescape"))


def example_files(folder: Path, names: list[str], *, classes: tuple[str, ...]) -> FileSource:
    """Small JPEG files of these names, labelled in turn."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (40 * i % 256, 90, 160)).save(folder / name, "JPEG")
    return FileSource(folder, names, classes=classes, labels=np.arange(len(names)) % len(classes))


def example_classifier(*, num_classes: int = 3) -> Classifier:
    """A small model as it is before training."""
    return ClassifierConfig(encoder=ENCODER, num_classes=num_classes).build().eval()
