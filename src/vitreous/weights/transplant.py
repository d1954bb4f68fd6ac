"""Transplants: a trained encoder in a classifier for other classes or another image size."""

import torch

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.position import Learned, resample
from vitreous.variants import paper_name
from vitreous.vit import ViTConfig
from vitreous.weights.mapping import Tensors, check
from vitreous.weights.product import Product


@torch.no_grad()
def fit_encoder(config: ClassifierConfig, product: Product) -> Classifier:
    """A classifier of `config` that starts from the encoder of `product`, its head at zero (Sec. 3.2).

    Learned positions are resampled to the new grid. A class token the new model cannot use is left behind;
    the place of one that has none any more is added to it. Pooling of the same kind comes along.

    Raises:
        InputError: if the two encoders are not the same function; names the tensors or the field.
    """
    source, target = product.classifier.config, config
    name = f"{paper_name(target.encoder)} with {type(target.encoder.position).__name__} positions"
    for field in ("num_heads", "norm_eps", "feed_forward"):
        theirs, wanted = getattr(source.encoder, field), getattr(target.encoder, field)
        if theirs != wanted:
            raise InputError(f"these weights do not fit {name}: they were trained with {field} {theirs}, not {wanted}")
    theirs, wanted = source.encoder.position, target.encoder.position
    if theirs != wanted and not (isinstance(theirs, Learned) and isinstance(wanted, Learned)):
        raise InputError(f"these weights do not fit {name}: they were trained with position {theirs}, not {wanted}")
    classifier = config.build()
    encoder = _adapted(product.classifier.encoder.state_dict(), source.encoder, target.encoder)
    check(encoder, classifier.encoder.state_dict(), model=name)
    classifier.encoder.load_state_dict(encoder)
    pooling, ours = (
        product.classifier.pooling.state_dict(),
        classifier.pooling.state_dict(),
    )
    if pooling.keys() == ours.keys():
        check(pooling, ours, model=name)
        classifier.pooling.load_state_dict(pooling)
    return classifier


def _adapted(tensors: Tensors, source: ViTConfig, target: ViTConfig) -> Tensors:
    tensors = dict(tensors)
    slot = tensors.get("position.class_token")
    if slot is not None and not (target.class_token and getattr(target.position, "class_token_slot", False)):
        del tensors["position.class_token"]
        tensors["prefix"] = torch.cat([tensors["prefix"][:1] + slot, tensors["prefix"][1:]])
    if source.class_token and not target.class_token:
        tensors["prefix"] = tensors["prefix"][1:]
    wants_slot = target.class_token and getattr(target.position, "class_token_slot", False)
    if wants_slot and source.class_token and slot is None:
        tensors["position.class_token"] = tensors["prefix"].new_zeros(1, source.width)
    if "position.table" in tensors:
        tensors["position.table"] = resample(tensors["position.table"], target.grid)
    return tensors
