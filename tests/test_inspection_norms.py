"""Norms of patch tokens after every block."""

import numpy as np
import pytest
import torch
from torch import nn

from explicit_attention import IMAGES, KINDS, tiny
from real_model import real_model, real_photos
from references import IN_TIMM, random_images, twins
from vitreous.block import Axial
from vitreous.errors import InputError
from vitreous.inspection.norms import HIGH, token_norms


def by_timm(model: nn.Module, images: torch.Tensor, prefix: int) -> np.ndarray:
    """(layer, image, patch), from hooks on timm's blocks."""
    found = []
    handles = [
        block.register_forward_hook(lambda module, inputs, out: found.append(out[:, prefix:])) for block in model.blocks
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return np.stack([np.sqrt((out.double().numpy() ** 2).sum(-1)) for out in found])


def assert_equal(found, norms: np.ndarray, *, tolerance: float) -> None:
    flat = norms.reshape(len(norms), -1)
    median = np.sort(flat, axis=1)[:, (flat.shape[1] - 1) // 2]  # the lower one of two
    np.testing.assert_allclose(found.norms.flatten(2), norms, rtol=tolerance)
    np.testing.assert_allclose(found.median, median, rtol=tolerance)
    np.testing.assert_allclose(found.largest, flat.max(axis=1), rtol=tolerance)
    np.testing.assert_allclose(found.threshold, 3 * median, rtol=tolerance)
    np.testing.assert_allclose(found.share, (flat > 3 * median[:, None]).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", ["class token", "registers", "mean", "parallel", "rotary, scaled"])
@torch.no_grad()
def test_norms_equal_those_of_timms_blocks(name):
    ours, theirs = twins(IN_TIMM[name])
    images = random_images(3, 3, 32, 32)
    expected = by_timm(theirs.double(), images.double(), ours.encoder.prefix.shape[0])
    found = token_norms(ours, images.split(2))
    assert found.norms.shape == (2, 3, 4, 4)
    assert_equal(found, expected, tolerance=1e-5)


@torch.no_grad()
def test_norms_of_real_weights_on_real_photos_equal_timms(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 4)
    assert_equal(token_norms(ours, [photos]), by_timm(theirs, photos.double(), 1), tolerance=1e-4)


def test_patches_that_stick_out_are_counted_and_prefix_tokens_are_not():
    classifier = tiny(depth=1, num_registers=1)
    for name, parameter in classifier.named_parameters():
        if "residual" in name or "attention.out" in name or "mlp.down" in name:
            torch.nn.init.zeros_(parameter)  # blocks add nothing
    images = torch.ones(4, 3, 8, 12)
    classifier.encoder.position.table.data.zero_()
    usual = token_norms(classifier, [images])
    assert usual.share.tolist() == [0]
    bias = classifier.encoder.stem.bias.data.zero_()
    images[0, :, :4, :4] *= 1.1 * HIGH
    images[1, :, :4, :4] *= 0.9 * HIGH
    classifier.encoder.prefix.data += 1e6
    found = token_norms(classifier, images.split(3))
    assert bias.abs().max() == 0
    np.testing.assert_allclose(found.share, [1 / 24])
    np.testing.assert_allclose(found.largest / found.median, [1.1 * HIGH], rtol=1e-5)
    assert found.norms[0].argmax() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_looking_leaves_no_hook_behind(kind):
    classifier = tiny(**KINDS[kind])
    token_norms(classifier, [IMAGES])
    with pytest.raises(InputError):
        token_norms(classifier, [torch.zeros(1, 3, 7, 7)])
    assert not any(module._forward_hooks for module in classifier.modules())


def test_axial_blocks_have_norms_too():
    assert token_norms(tiny(block=Axial(), class_token=False), [IMAGES]).norms.shape == (3, 2, 2, 3)


def test_no_images_and_images_of_two_sizes_are_refused():
    with pytest.raises(InputError, match=r"^token norms need at least one image, got none$"):
        token_norms(tiny(), [])
    with pytest.raises(
        InputError, match=r"^norms need images of one size, got grids of 2 x 3 and 3 x 3 patches; resize"
    ):
        token_norms(tiny(), [IMAGES, torch.zeros(1, 3, 12, 12)])
