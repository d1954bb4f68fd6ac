from typing import Any

import pytest
import timm
import torch

from references import difference, epsilons, random_images, randomise
from vitreous.pooling import Mean
from vitreous.position import Learned
from vitreous.weights.product import load_product

SMALL: dict[str, Any] = {"embed_dim": 64, "num_heads": 1, "depth": 2, "img_size": 32, "patch_size": 8}
IMAGES = random_images(2, 3, 32, 32)


@pytest.fixture
def load(tmp_path):
    """The product in a file as MAE's code writes it."""

    def load(tensors, **more):
        torch.save({"model": tensors, **more}, tmp_path / "weights.pth")
        return load_product(tmp_path, weights="weights.pth")

    return load


@torch.no_grad()
def test_the_encoder_of_a_pre_training_is_read(load):
    theirs = randomise(timm.create_model("vit_base_patch16_224", num_classes=0, **SMALL))
    decoder = {
        "mask_token": torch.ones(1, 1, 16),
        "decoder_pos_embed": torch.ones(1, 17, 16),
        "decoder_embed.weight": torch.ones(16, 64),
        "decoder_blocks.0.norm1.weight": torch.ones(16),
        "decoder_norm.weight": torch.ones(16),
        "decoder_pred.bias": torch.ones(192),
    }
    found = load(theirs.state_dict() | decoder, epoch=800)
    assert epsilons(found.classifier) == epsilons(theirs)
    assert difference(found.classifier.features(IMAGES), theirs(IMAGES)) < 1e-5
    assert found.extra["left"] == "left behind: the decoder, the mask token"
    assert found.extra["headless"]
    assert found.extra["assumed"].endswith("ImageNet mean and deviation, bicubic resize, crop ratio 0.875")
    assert (found.view.crop_ratio, found.view.mean) == (0.875, (0.485, 0.456, 0.406))
    assert found.classifier.config.encoder.position == Learned(resampling="bicubic")


@torch.no_grad()
def test_a_fine_tuned_model_norms_after_pooling(load):
    theirs = randomise(timm.create_model("vit_base_patch16_224", num_classes=5, global_pool="avg", **SMALL))
    assert "fc_norm.weight" in theirs.state_dict()
    found = load(theirs.state_dict())
    assert found.classifier.config.pooling == Mean(norm=True)
    assert epsilons(found.classifier) == epsilons(theirs)
    assert difference(found.classifier(IMAGES), theirs(IMAGES)) < 1e-5
