"""What holds on this machine: sizes, arithmetic, pixels and files, each against a number known beforehand."""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitreous.budget import cost, plain_classifier
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.feed_forward import GELU
from vitreous.pooling import ClassToken, Mean
from vitreous.resampling import resample
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.variants import encoder
from vitreous.vit import ViTConfig
from vitreous.weights.convert import verify, write
from vitreous.weights.open import open_model
from vitreous.weights.product import Product, golden

# Of the paper's code (models_test.py), with 1,000 classes; R50x1 as in BiT. Operations: timm's tables, multiply-adds.
PARAMETERS = {"B/16": 86_567_656, "L/16": 304_326_632, "H/14": 632_045_800, "R50+B/16": 98_659_112, "R50x1": 25_549_352}
GIGA_MULTIPLY_ADDS = {"B/16": 17.58, "L/16": 61.6}
# Logits of `formula_model` on `formula_images`, from a float64 computation in NumPy that shares no code with ours.
LOGITS = {
    "ViT": (0.8375216986065531, 0.4616729593027918, 0.00482674129189431),
    "hybrid": (1.5178658049032685, 0.013710966105985767, 0.5341955241576645),
    "BiT ResNet": (1.116482317565613, 0.7827484830849448, 0.42813261718884416),
}


@dataclass(frozen=True)
class Check:
    """One thing that should hold."""

    name: str
    expected: str
    found: str
    holds: bool | None
    """None: there was nothing to hold it against."""


def selftest(model: str | None = None, *, progress: Callable[[str], None] | None = None) -> Iterator[Check]:
    """Each check as it is made; `model`, any name `open_model` takes, is checked against the logits saved with it."""
    for name, number in PARAMETERS.items():
        found = cost(plain_classifier(encoder(name))).parameters
        yield Check(f"parameters of {name}", f"{number:,}", f"{found:,}", found == number)
    for name, giga in GIGA_MULTIPLY_ADDS.items():
        found = cost(plain_classifier(encoder(name))).gflops / 2
        yield Check(f"multiply-adds of {name}", f"{giga} G", f"{found:.2f} G", math.isclose(found, giga, rel_tol=0.005))
    for name, expected in LOGITS.items():
        with torch.no_grad():
            found = formula_model(name)(formula_images().float())[0].tolist()
        worst = max(abs(a - b) for a, b in zip(found, expected))
        yield Check(f"logits of a small {name}", "within 1e-5", f"{worst:.1e}", worst <= 1e-5 * max(map(abs, expected)))
    yield _pixels()
    yield _ramp()
    yield from _files()
    if model is not None:
        yield _saved_answer(model, progress)


def formula_model(name: str) -> Classifier:
    """A small model of each family whose weights are sines, so that everybody can make it."""
    shape = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "feed_forward": GELU(tanh=True)}
    encoders = {
        "ViT": ViTConfig(patch_size=8, image_size=32, **shape),
        "hybrid": ViTConfig(patch_size=8, image_size=32, stem=ResNetStem(units=(1, 1)), **shape),
        "BiT ResNet": ResNetConfig(units=(1, 1), image_size=32),
    }
    pooling = Mean() if name == "BiT ResNet" else ClassToken()
    classifier = ClassifierConfig(encoder=encoders[name], pooling=pooling, num_classes=3).build()
    with torch.no_grad():
        for number, parameter in enumerate(classifier.parameters()):
            sines = torch.arange(parameter.numel(), dtype=torch.float64).add(100 * number).mul(0.7).sin()
            values = sines.view(parameter.shape) * (0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
            parameter.copy_(values + 0.5 if parameter.ndim == 1 else values)
    return classifier.eval()


def formula_images() -> torch.Tensor:
    """One image of 32 x 32 pixels, of sines; float64."""
    return torch.arange(3 * 32 * 32, dtype=torch.float64).mul(0.01).sin().view(1, 3, 32, 32)


def _pixels() -> Check:
    """A view keeps a ramp a ramp, and cuts its middle."""
    ramp = np.broadcast_to(np.arange(0, 240, dtype=np.uint8)[None, :, None], (120, 240, 3))
    pixels = EvalView(image_size=30, crop_ratio=0.5)(Image.fromarray(np.ascontiguousarray(ramp)))
    expected = 119.5 + 2 * (torch.arange(30) - 14.5)  # 240 x 120 to 120 x 60, then columns 45 to 75
    worst = (pixels[0].float() - expected).abs().max().item()
    return Check("pixels of a view", "within 1 of 255", f"{worst:.1f}", worst <= 1)


def _ramp() -> Check:
    """Positions that rise evenly still do so on another grid, and their corners stay."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 14), torch.linspace(-1, 1, 14), indexing="ij")
    table = torch.stack([rows, columns], dim=-1)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(-1, 1, 32), indexing="ij")
    worst = (resample(table, (24, 32)) - torch.stack([rows, columns], dim=-1)).abs().max().item()
    return Check("positions resampled", "within 1e-6", f"{worst:.1e}", worst <= 1e-6)


def _files() -> Iterator[Check]:
    """What is written in each layout is read back without any difference."""
    product = Product(formula_model("ViT"), EvalView(image_size=32), ("a", "b", "c"))
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("vitreous", "timm", "hf", "google"):
            write(product, Path(folder) / layout, to=layout)
            agreement = verify(product, Path(folder) / layout)
            yield Check(f"written and read as {layout}", "0", f"{agreement.difference:g}", agreement.difference == 0)


def _saved_answer(model: str, progress: Callable[[str], None] | None) -> Check:
    product = open_model(model, progress=progress)
    found = golden(product)
    kind = "features" if "features" in found else "logits"
    other = "logits" if kind == "features" else "features"
    if product.golden is None or (kind not in product.golden and other in product.golden):
        return Check(f"{kind} of {model}", "saved with it", "none saved", None)
    try:
        saved = torch.tensor(product.golden[kind], dtype=torch.float32)
    except (LookupError, TypeError, ValueError, RuntimeError):
        return Check(f"{kind} of {model}", "saved with it", "damaged", False)
    answer = torch.tensor(found[kind])
    if answer.shape != saved.shape:
        return Check(f"{kind} of {model}", f"{saved.numel()} numbers", f"{answer.numel()} numbers", False)
    worst = ((answer - saved).abs().max() / saved.abs().max().clamp(min=1e-12)).item()  # NaN where either has one
    return Check(f"{kind} of {model}", "as saved, to 1e-4", f"{worst:.1e}", worst <= 1e-4)
