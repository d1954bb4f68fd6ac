"""Mean attention distance, entropy and the share of prefix tokens."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from torch.testing import assert_close

from explicit_attention import IMAGES, KINDS, explicit, timm_attention, tiny
from real_model import real_model, real_photos
from references import IN_TIMM, random_images, twins
from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection import attention
from vitreous.inspection.distance import attention_statistics, grid_distances
from vitreous.position import Learned


def by_formula(weights: list[torch.Tensor], grid: tuple[int, int], patch_size: int) -> list[np.ndarray]:
    """Distance, entropy and share of the prefix, (layer, head), in float64 from the paper's words."""
    centres = np.array([(i + 0.5, j + 0.5) for i in range(grid[0]) for j in range(grid[1])]) * patch_size
    pixels, found = cdist(centres, centres), []
    for layer in weights:
        attention = layer.detach().double().numpy()
        prefix = attention.shape[-1] - len(centres)
        rows = attention[:, :, prefix:]
        among = rows[..., prefix:] / rows[..., prefix:].sum(-1, keepdims=True)
        distance = np.einsum("bhqk,qk->bhq", among, pixels).mean((0, 2))
        found.append([distance, entropy(rows, axis=-1).mean((0, 2)), rows[..., :prefix].sum(-1).mean((0, 2))])
    return [np.stack(part) for part in zip(*found)]


def assert_equal(found, expected: list[np.ndarray], *, tolerance: float = 1e-5) -> None:
    for ours, theirs in zip((found.distance, found.entropy, found.prefix_share), expected):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance)


def without_attention(classifier: Classifier) -> Classifier:
    """All logits zero."""
    for name, parameter in classifier.named_parameters():
        if "qkv" in name:
            torch.nn.init.zeros_(parameter)
    return classifier


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_equal_the_definition_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    found = attention_statistics(classifier, IMAGES.split(1))
    assert found.num_images == 2
    assert_equal(found, by_formula(explicit(classifier).weights, (2, 3), 4))


@pytest.mark.parametrize(
    "name", ["class token", "registers", "mean", "parallel", "normed queries and keys", "rotary, scaled", "CLIP"]
)
@torch.no_grad()
def test_statistics_equal_those_of_the_attention_that_timm_computes(name):
    config = IN_TIMM[name]
    ours, theirs = twins(config)
    images = random_images(3, 3, 32, 32)
    weights, _ = timm_attention(theirs.double(), images.double())
    assert len(weights) == 2
    assert_equal(attention_statistics(ours, [images]), by_formula(weights, (4, 4), 8))


@torch.no_grad()
def test_statistics_of_real_weights_on_real_photos_equal_those_of_timms_attention(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 6)
    weights, _ = timm_attention(theirs, photos.double())
    found = attention_statistics(ours, photos.split(4))
    assert_equal(found, by_formula(weights, (14, 14), 16), tolerance=1e-4)
    assert found.distance.min() < 40
    assert found.distance.max() > 90


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 20), (4, 24)])
@pytest.mark.parametrize("kind", ["class token and registers", "no class token"])
def test_uniform_attention_gives_the_mean_distance_of_two_patches(kind, height, width):
    rows, columns = height // 4, width // 4
    centres = [(4 * i, 4 * j) for i in range(rows) for j in range(columns)]
    tokens = rows * columns + (3 if kind == "class token and registers" else 1)
    found = attention_statistics(without_attention(tiny(**KINDS[kind])), [torch.randn(3, 3, height, width)])
    assert_close(found.distance, torch.full((3, 4), cdist(centres, centres).mean()))
    assert_close(found.entropy, torch.full((3, 4), float(np.log(tokens))))
    assert_close(found.prefix_share, torch.full((3, 4), 1 - rows * columns / tokens))


def test_attention_of_each_patch_to_itself_gives_zero():
    classifier = tiny(num_heads=1, position=Learned(), image_size=(8, 12))
    for name, parameter in classifier.named_parameters():
        if "qkv.weight" in name:  # queries and keys are the token itself, many times enlarged
            parameter.data = 10 * torch.eye(32).repeat(3, 1)
        elif "blocks" in name or "stem" in name or "prefix" in name or "class_token" in name:
            torch.nn.init.constant_(parameter, float(name.endswith("norm1.weight")))
    classifier.encoder.position.table.data = torch.eye(32)[:6].unflatten(0, (2, 3))
    found = attention_statistics(classifier, [IMAGES])
    for part in (found.distance, found.entropy, found.prefix_share):
        assert_close(part, torch.zeros(3, 1))


def test_without_prefix_tokens_nothing_goes_to_them():
    found = attention_statistics(tiny(class_token=False), [IMAGES])
    assert torch.equal(found.prefix_share, torch.zeros(3, 4))


def test_grid_distances_are_those_of_the_centres_in_pixels():
    centres = [(i * 16 + 8, j * 16 + 8) for i in range(3) for j in range(5)]
    assert_close(grid_distances((3, 5), patch_size=16).double().numpy(), cdist(centres, centres), rtol=1e-6, atol=0)


def test_batches_and_parts_of_them_give_the_same_means(monkeypatch):
    classifier, images = tiny(), torch.randn(7, 3, 8, 12)
    whole = attention_statistics(classifier, [images])
    monkeypatch.setattr(attention, "PART_BYTES", 2 * 4 * 4 * 7 * 7)
    parts = attention_statistics(classifier, images.split(3))
    assert parts.num_images == 7
    for name in ("distance", "entropy", "prefix_share"):
        assert_close(getattr(parts, name), getattr(whole, name))


def test_no_images_and_images_of_two_sizes_are_refused():
    with pytest.raises(InputError, match=r"^attention statistics need at least one image, got none$"):
        attention_statistics(tiny(), [])
    with pytest.raises(InputError, match=r"^distances need images of one size, got 8 x 12 and 12 x 12 pixels; resize"):
        attention_statistics(tiny(), [IMAGES, torch.zeros(1, 3, 12, 12)])
