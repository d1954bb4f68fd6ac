"""Small models to look inside, and images to look at."""

from typing import Any

import torch
from PIL import Image

from pictures import noise
from references import randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.data.source import ArraySource
from vitreous.data.views import EvalView
from vitreous.pooling import ClassToken, Mean
from vitreous.predict import Model

CLASSES = ("cat", "dog", "eel")


def example_model(
    *, seed: int = 0, classes: tuple[str, ...] = CLASSES, headless: bool = False, **encoder: Any
) -> Model:
    """A model with random weights: 4 x 4 patches of 8 pixels, 2 layers, 4 heads, a class token."""
    torch.manual_seed(seed)
    shape = tiny(**encoder)
    pooling = ClassToken() if shape.class_token else Mean()
    config = ClassifierConfig(encoder=shape, pooling=pooling, num_classes=len(classes))
    view = EvalView(image_size=config.encoder.image_shape, crop_ratio=1.0)
    named = None if headless else classes
    return Model(randomise(config.build(), seed=seed), view=view, classes=named, device="cpu", headless=headless)


def example_pictures(number: int) -> list[Image.Image]:
    """Different noisy images."""
    return [noise(seed, width=40, height=40) for seed in range(number)]


def example_gallery(pictures: list[Image.Image]) -> ArraySource:
    """The same images, labelled in turn."""
    pixels = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures])
    labels = torch.arange(len(pictures)) % len(CLASSES)
    return ArraySource(pixels.view(-1, 40, 40, 3).numpy(), prefix="gallery", classes=CLASSES, labels=labels.numpy())
