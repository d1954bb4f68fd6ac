"""Product folders: a trained classifier and all that its use needs, here, in timm and in transformers."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.config import from_dict
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.files import write_folder
from vitreous.variants import title
from vitreous.vit import ViTConfig
from vitreous.weights import huggingface, layouts, timm
from vitreous.weights.hub import weights_in
from vitreous.weights.infer import with_head
from vitreous.weights.mapping import Tensors, instantiate
from vitreous.weights.read import read_config, read_metadata, read_tensors
from vitreous.weights.timm_config import classifier_name, describe, first_conv, lacks, pool_name
from vitreous.weights.timm_tensors import from_timm, to_timm

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MULTI_LABEL = "multi_label"
PROBLEM = {"problem_type": "multi_label_classification"}
"""How transformers says it."""
OURS = ("format", "classifier", "view", "classes", "golden")


@dataclass
class Product:
    """A classifier, how its images are prepared, and what its classes are called."""

    classifier: Classifier
    view: EvalView
    classes: tuple[str, ...] | None = None
    """Names in the order of the logits; None where nobody wrote them down."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping with it, as JSON types: metrics, recipe, data fingerprint.

    A loaded product may have "assumed", a sentence on what its files do not say, "headless", true where
    the weights are an encoder's alone and the head says zero, and "multi_label", see there.
    """
    golden: dict[str, Any] | None = None
    """What `golden` said of it when it was saved."""

    @property
    def multi_label(self) -> bool:
        """Whether each class stands by itself: an image may show several, or none."""
        return bool(self.extra.get(MULTI_LABEL))

    def describe(self) -> str:
        """The model in a few words."""
        encoder, classes = self.classifier.config.encoder, self.classifier.config.num_classes
        said = "an encoder alone" if self.extra.get("headless") else f"{classes:,} classes"
        said += ", several or none an image" if self.multi_label else ""
        return f"{title(encoder)}, {encoder.pixels}, {said}"


def save_product(folder: Path, product: Product) -> None:
    """Write config.json and model.safetensors so that `folder` holds the old product or the new one, whole.

    Where timm can build the same function, the files are timm's: timm and transformers load the folder too.

    Raises:
        InputError: if the folder cannot be written, or the names of classes are not one for each logit.
    """
    fields = timm_fields(product)
    tensors = to_timm(product.classifier) if "architecture" in fields else product.classifier.state_dict()
    write_folder(folder, {WEIGHTS: safetensors_bytes(tensors), CONFIG: config_bytes(product, fields)})


def safetensors_bytes(tensors: Tensors, *, config: bytes | None = None) -> bytes:
    """The tensors as a .safetensors file, in float32; `config`, a config.json, goes into its metadata."""
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    said = {} if config is None else {CONFIG: json.dumps(json.loads(config.decode("utf-8", "surrogateescape")))}
    return save(plain, metadata={"format": "pt", **said})


def config_bytes(product: Product, fields: dict[str, Any]) -> bytes:
    """A config.json with `fields` of another project, and beside them all that this one knows.

    Raises:
        InputError: if the names of classes are not one for each logit.
    """
    config = product.classifier.config
    if product.classes is not None and len(product.classes) != config.num_classes:
        raise InputError(f"{len(product.classes)} class names for a model of {config.num_classes} classes")
    ours = {
        "format": FORMAT,
        "classifier": config.to_dict(),
        "view": product.view.to_dict(),
        "classes": product.classes and list(product.classes),
        "golden": golden(product),
    }
    return json_bytes({**fields, **(PROBLEM if product.multi_label else {}), "vitreous": {**product.extra, **ours}})


def json_bytes(document: dict[str, Any]) -> bytes:
    """A document as a JSON file; names of files that are no text stay as they are."""
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def load_product(folder: Path, *, weights: str | None = None) -> Product:
    """The product in a folder: ours, or tensors in any layout with or without a config.json that says more.

    `weights` names the file of tensors; by default the one that is there.

    Raises:
        InputError: if a file is missing or damaged, or they do not belong together.
    """
    path = folder / weights if weights else weights_in(folder)
    if path is None:
        raise InputError(f"{folder} has no {WEIGHTS}; copy all files of a model")
    inside = read_metadata(path).get(CONFIG)
    document = inside or read_config(folder / CONFIG)
    tensors = read_tensors(path)
    if "vitreous" not in document and huggingface.fits(tensors):
        document |= {huggingface.PREPROCESSOR: read_config(folder / huggingface.PREPROCESSOR)}
    try:
        return _ours(document, tensors) if "vitreous" in document else _foreign(document, tensors)
    except InputError as error:
        beside = f", read with the {CONFIG} beside it" if weights and (folder / CONFIG).is_file() and not inside else ""
        raise InputError(f"{path}{beside}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{folder / CONFIG} lacks or misstates {error}; fetch or write it again") from error


def _ours(document: dict[str, Any], tensors: Tensors) -> Product:
    saved = document["vitreous"]
    if saved["format"] > FORMAT:
        raise InputError(f"written by a newer vitreous (format {saved['format']}, this one reads {FORMAT}); update it")
    config, view, classes = from_dict(saved["classifier"]), from_dict(saved["view"]), saved["classes"]
    if not (isinstance(config, ClassifierConfig) and isinstance(view, EvalView)):
        raise InputError(f"{CONFIG} names no classifier and view; fetch or write it again")
    if classes is not None and not all(isinstance(name, str) for name in classes):
        raise InputError(f"{CONFIG} has names of classes that are no text; fetch or write it again")
    known = from_timm(tensors, config=config) if timm.fits(tensors) else layouts.read(tensors, document).tensors
    extra = {name: value for name, value in saved.items() if name not in OURS}
    if extra.get("headless"):
        known = with_head(known, config)
    classes = None if classes is None else tuple(classes)
    return Product(instantiate(config, known), view, classes, extra, golden=saved.get("golden"))


def _foreign(document: dict[str, Any], tensors: Tensors) -> Product:
    """A product from tensors in any layout and the config.json beside them, if any; says what it assumes."""
    foreign = layouts.read(tensors, document)
    classifier = layouts.classifier_of(foreign)
    encoder, num_classes = classifier.config.encoder, classifier.config.num_classes
    extra: dict[str, Any] = {}
    heads_are_open = foreign.num_heads is None and not any(document.values())
    heads = [f"{encoder.num_heads} heads"] if heads_are_open and isinstance(encoder, ViTConfig) else []
    if assumed := [*heads, *foreign.assumed]:
        silence = f"{CONFIG} does not say" if any(document.values()) else f"no {CONFIG} says otherwise"
        extra["assumed"] = f"{silence}: assumed {', '.join(assumed)}"
    left, classes = [*foreign.left], foreign.classes
    if "head.linear.weight" not in foreign.tensors:
        extra["headless"], classes = True, None
    if classes is not None and len(classes) != num_classes:
        left.append(f"{len(classes):,} class names, for the head has {num_classes:,} classes")
        classes = None
    if document.items() >= PROBLEM.items():
        extra[MULTI_LABEL] = True
    if left:
        extra["left"] = f"left behind: {', '.join(left)}"
    return Product(classifier, EvalView(image_size=encoder.image_size, **foreign.view), classes, extra)


def timm_fields(product: Product) -> dict[str, Any]:
    """What timm and transformers read in config.json; no `architecture` where they lack the model."""
    config, view = product.classifier.config, product.view
    fields: dict[str, Any] = {
        **({} if lacks(config) else describe(config)),
        "num_classes": config.num_classes,
        "num_features": config.encoder.features,
        "global_pool": pool_name(config.pooling) or "",
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [config.encoder.channels, *view.shape],
            "fixed_input_size": isinstance(config.encoder, ViTConfig),
            "interpolation": view.interpolation,
            "crop_pct": 1.0 if view.squash else view.crop_ratio,
            "crop_mode": "squash" if view.squash else "center",
            "mean": list(view.mean),
            "std": list(view.std),
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": first_conv(config.encoder),
            "classifier": classifier_name(config),
        },
    }
    return fields if product.classes is None else {**fields, "label_names": list(product.classes)}


def golden_input(config: ClassifierConfig) -> Float[Tensor, "1 channel height width"]:
    """An image anyone can make again: the sine of 0, 0.01, 0.02, ... in the order channel, row, column."""
    shape = (1, config.encoder.channels, *config.encoder.image_shape)
    return torch.arange(math.prod(shape), dtype=torch.float64).mul(0.01).sin().float().view(shape)


@torch.no_grad()
def golden(product: Product) -> dict[str, Any]:
    """What `golden_input` gives and how to make it: who agrees computes this model. Features where there is no head."""
    classifier, headless = product.classifier, product.extra.get("headless", False)
    device, training = next(classifier.parameters()).device, classifier.training
    images = golden_input(classifier.config)
    classifier.eval()
    answer = (classifier.features if headless else classifier)(images.to(device)).float().cpu()
    classifier.train(training)
    return {
        "input": "float32(sin(0.01 * arange(n))) in float64, reshaped to `shape`: already normalised pixels",
        "shape": list(images.shape),
        "features" if headless else "logits": answer[0].tolist(),
    }
