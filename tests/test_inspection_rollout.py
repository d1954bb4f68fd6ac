"""Rollout in both forms, and rollout weighted by gradients."""

import pytest
import torch
from torch.testing import assert_close

from explicit_attention import GRID, IMAGES, KINDS, Explicit, explicit, timm_attention, tiny
from real_model import real_model, real_photos
from references import IN_TIMM, random_images, twins
from vitreous.errors import InputError
from vitreous.inspection.rollout import Rollout, gradient_rollout, rollout, with_residual
from vitreous.packing import packed
from vitreous.position import Learned

CLASSES = torch.tensor([3, 1])


def rescaled(matrix: torch.Tensor) -> torch.Tensor:
    """Plus identity, each row divided by its sum, row by row."""
    rows = (matrix + torch.eye(matrix.shape[-1], dtype=torch.float64)).unbind(-2)
    return torch.stack([row / row.sum(-1)[..., None] for row in rows], dim=-2)


def product(matrices: list[torch.Tensor]) -> torch.Tensor:
    """The last layer's times ... times the first's."""
    found = matrices[0]
    for matrix in matrices[1:]:
        found = torch.einsum("bij,bjk->bik", matrix, found)
    return found


def map_of(reference: Explicit, matrices: list[torch.Tensor]) -> torch.Tensor:
    map_ = reference.read(product(matrices))
    return (map_ / map_.sum((-2, -1), keepdim=True)).detach().float()


def by_gradients(weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    return [rescaled((w * g).clamp(min=0).mean(1)) for w, g in zip(weights, gradients)]


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_equals_the_authors_product_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    reference = explicit(classifier)
    expected = map_of(reference, [rescaled(weights.mean(1)) for weights in reference.weights])
    assert_close(rollout(classifier, IMAGES), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_form_equals_the_product_without_identity_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    reference = explicit(classifier)
    expected = map_of(reference, [weights.mean(1) for weights in reference.weights])
    found = rollout(classifier, IMAGES, form="paper")
    assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, rollout(classifier, IMAGES), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_rollout_equals_autograd_through_attention_written_out_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    reference = explicit(classifier)
    expected = map_of(reference, by_gradients(reference.weights, reference.gradients(CLASSES)))
    assert_close(gradient_rollout(classifier, IMAGES, classes=CLASSES), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["class token", "registers", "mean", "parallel", "rotary, scaled", "CLIP"])
def test_rollout_equals_that_of_the_attention_that_timm_computes(name):
    ours, theirs = twins(IN_TIMM[name])
    images = random_images(2, 3, 32, 32)
    weights, logits = timm_attention(theirs.double(), images.double())
    gradients = torch.autograd.grad(logits[:, 2].sum(), weights)
    prefix = ours.encoder.prefix.shape[0]
    pooled = slice(prefix, None) if "mean" in name or "scaled" in name else slice(1)
    for found, matrices in (
        (rollout(ours, images), [rescaled(layer.mean(1)) for layer in weights]),
        (gradient_rollout(ours, images, classes=torch.tensor([2, 2])), by_gradients(weights, list(gradients))),
    ):
        expected = product(matrices)[:, pooled, prefix:].mean(1)
        expected = (expected / expected.sum(-1, keepdim=True)).unflatten(-1, (4, 4))
        assert_close(found, expected.detach().float(), rtol=1e-4, atol=1e-6)


def test_rollout_of_real_weights_on_real_photos_equals_that_of_timms_attention(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 3)
    weights, logits = timm_attention(theirs, photos.double())
    gradients = torch.autograd.grad(logits.amax(dim=1).sum(), weights)
    for found, matrices in (
        (rollout(ours, photos), [rescaled(layer.mean(1)) for layer in weights]),
        (gradient_rollout(ours, photos), by_gradients(weights, list(gradients))),
    ):
        expected = product(matrices)[:, 0, 1:]
        expected = (expected / expected.sum(-1, keepdim=True)).unflatten(-1, (14, 14))
        assert_close(found, expected.detach().float(), rtol=2e-4, atol=1e-7)


def test_rows_are_scaled_by_their_own_sums():
    """Without keepdim, a sum over rows divides columns: rows then sum to something else."""
    attention = torch.rand(3, 5, 5) * torch.tensor([0.1, 1, 5, 20, 100.0])[:, None]
    mixed = with_residual(attention)
    assert_close(mixed.sum(-1), torch.ones(3, 5))
    divided = (attention + torch.eye(5)) / (attention + torch.eye(5)).sum(-1)[:, None]
    assert (divided.sum(-1) - 1).abs().max() > 0.5
    assert_close(mixed[1, 2, 3], (attention[1, 2, 3] / (attention[1, 2].sum() + 1)))


@pytest.mark.parametrize("form", ["authors", "paper"])
def test_rows_of_rollout_sum_to_one_and_identity_stays_identity(form):
    torch.manual_seed(0)
    random, same = Rollout(form), Rollout(form)
    for layer in range(4):
        for images in (slice(0, 2), slice(2, 3)):
            number = images.stop - images.start
            random.see(layer, images, torch.randn(number, 3, 6, 6).softmax(-1))
            same.see(layer, images, torch.eye(6).expand(number, 3, 6, 6))
    assert_close(random.flow.product().sum(-1), torch.ones(3, 6))
    assert_close(same.flow.product(), torch.eye(6).expand(3, 6, 6))


@pytest.mark.parametrize("function", [rollout, gradient_rollout])
@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_a_wide_image_keep_its_grid_and_sum_to_one(kind, function):
    flow = function(tiny(**KINDS[kind]), torch.randn(3, 3, 4, 20))
    assert flow.shape == (3, 1, 5)
    assert_close(flow.sum((-2, -1)), torch.ones(3))


@pytest.mark.parametrize("kind", ["class token", "no class token"])
@pytest.mark.parametrize("form", ["authors", "paper"])
def test_uniform_attention_gives_a_uniform_map(kind, form):
    classifier = tiny(position=Learned(), **KINDS[kind])
    for name, parameter in classifier.named_parameters():
        if "qkv" in name:
            torch.nn.init.zeros_(parameter)
    assert_close(rollout(classifier, IMAGES, form=form), torch.full((2, *GRID), 1 / 6))


def test_the_class_explained_is_the_most_probable_one_where_none_is_given():
    classifier = tiny()
    best = classifier(IMAGES).argmax(-1)
    found = gradient_rollout(classifier, IMAGES)
    assert torch.equal(found, gradient_rollout(classifier, IMAGES, classes=best))
    assert not torch.allclose(found, gradient_rollout(classifier, IMAGES, classes=(best + 1) % 5), atol=1e-3)


def test_gradients_are_had_of_frozen_models_and_where_none_are_kept():
    classifier = tiny()
    expected = gradient_rollout(classifier, IMAGES)
    classifier.requires_grad_(False)
    with torch.inference_mode():
        assert_close(gradient_rollout(classifier, IMAGES.clone()), expected)
    with torch.no_grad():
        assert_close(gradient_rollout(classifier, IMAGES), expected)


def test_a_score_that_depends_on_no_attention_gives_zeros():
    classifier = tiny()
    torch.nn.init.zeros_(classifier.head.linear.weight)
    assert torch.equal(gradient_rollout(classifier, IMAGES), torch.zeros(2, *GRID))


def test_classes_that_do_not_fit_and_packed_models_are_refused():
    with pytest.raises(InputError, match=r"^2 images need 2 classes, got a tensor of \(3,\)$"):
        gradient_rollout(tiny(), IMAGES, classes=torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match=r"^classes are whole numbers from 0 to 4, got \[0, 5\]$"):
        gradient_rollout(tiny(), IMAGES, classes=torch.tensor([0, 5]))
    if torch.backends.mkldnn.is_available():
        with pytest.raises(InputError, match=r"^a model packed for inference has no gradients; give the classifier"):
            gradient_rollout(packed(tiny()), IMAGES)
