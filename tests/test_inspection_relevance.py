"""Relevance by attention and its gradients."""

import pytest
import torch
from torch.testing import assert_close

from explicit_attention import GRID, IMAGES, KINDS, explicit, timm_attention, tiny
from real_model import real_model, real_photos
from references import IN_TIMM, random_images, twins
from vitreous.inspection.relevance import relevance

CLASSES = torch.tensor([4, 0])


def gathered(weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> torch.Tensor:
    """R of Eq. 5 and 6, image by image."""
    found = []
    for image in range(weights[0].shape[0]):
        matrix = torch.eye(weights[0].shape[-1], dtype=torch.float64)
        for attention, gradient in zip(weights, gradients):
            heads = [torch.clamp(g * a, min=0) for g, a in zip(gradient[image], attention[image])]
            matrix = matrix + torch.mm(sum(heads) / len(heads), matrix)
        found.append(matrix)
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_equals_autograd_through_attention_written_out_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    reference = explicit(classifier)
    expected = reference.read(gathered(reference.weights, reference.gradients(CLASSES))).detach().float()
    found = relevance(classifier, IMAGES, classes=CLASSES)
    assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    assert found.min() >= 0


@pytest.mark.parametrize("name", ["class token", "registers", "mean", "parallel", "rotary, scaled", "CLIP"])
def test_relevance_equals_that_of_the_attention_that_timm_computes(name):
    ours, theirs = twins(IN_TIMM[name])
    images = random_images(2, 3, 32, 32)
    weights, logits = timm_attention(theirs.double(), images.double())
    gradients = torch.autograd.grad(logits[:, 2].sum(), weights)
    prefix = ours.encoder.prefix.shape[0]
    pooled = slice(prefix, None) if "mean" in name or "scaled" in name else slice(1)
    expected = gathered(weights, list(gradients))[:, pooled, prefix:].mean(1).unflatten(-1, (4, 4)).detach().float()
    found = relevance(ours, images, classes=torch.tensor([2, 2]))
    assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_relevance_of_real_weights_on_real_photos_equals_that_of_timms_attention(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 3)
    weights, logits = timm_attention(theirs, photos.double())
    gradients = torch.autograd.grad(logits.amax(dim=1).sum(), weights)
    expected = gathered(weights, list(gradients))[:, 0, 1:].unflatten(-1, (14, 14)).detach().float()
    assert_close(relevance(ours, photos), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_each_image_is_explained_by_itself():
    classifier = tiny()
    together = relevance(classifier, IMAGES, classes=CLASSES)
    for i in range(2):
        assert_close(relevance(classifier, IMAGES[i : i + 1], classes=CLASSES[i : i + 1]), together[i : i + 1])


def test_a_class_token_whose_score_depends_on_no_attention_finds_no_patch_relevant():
    classifier = tiny()
    torch.nn.init.zeros_(classifier.head.linear.weight)
    assert torch.equal(relevance(classifier, IMAGES), torch.zeros(2, *GRID))
