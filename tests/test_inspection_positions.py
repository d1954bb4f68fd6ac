"""How alike position embeddings are."""

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch.testing import assert_close

from explicit_attention import tiny
from real_model import real_model
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.inspection.positions import position_similarity
from vitreous.pooling import Mean
from vitreous.position import EveryLayer, Learned, Learned2d, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias
from vitreous.resampling import resample
from vitreous.resnet import ResNetConfig


@pytest.mark.parametrize("position", [Learned(), Learned2d(), SinCos2d()])
@pytest.mark.parametrize("grid", [None, (2, 5)])
def test_similarity_equals_sklearns(position, grid):
    classifier = tiny(position=position, image_size=(12, 16))
    vectors = classifier.encoder.position.vectors(grid or (3, 4), torch.device("cpu")).flatten(0, 1)
    expected = cosine_similarity(vectors.detach().double().numpy())
    found = position_similarity(classifier, grid=grid)
    assert found.shape == 2 * (grid or (3, 4))
    assert_close(found.flatten(2).flatten(0, 1).double().numpy(), expected, rtol=0, atol=1e-6)
    assert not found.requires_grad


def test_similarity_of_a_real_model_equals_sklearns_and_peaks_at_the_patch(shared):
    ours, theirs = real_model(shared)
    expected = cosine_similarity(theirs.pos_embed[0, 1:].detach().numpy())
    found = position_similarity(ours)
    assert_close(found.flatten(2).flatten(0, 1).double().numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(found.flatten(2).flatten(0, 1).argmax(1), torch.arange(196))


def test_another_grid_is_resampled_as_the_model_does_it():
    classifier = tiny(position=Learned(resampling="antialiased_bicubic"), image_size=24)
    table = resample(classifier.encoder.position.table, (2, 3), "antialiased_bicubic").flatten(0, 1)
    expected = cosine_similarity(table.detach().numpy())
    assert_close(position_similarity(classifier, grid=(2, 3)).reshape(6, 6).numpy(), expected, rtol=0, atol=1e-6)


def test_of_positions_in_every_layer_those_of_the_first_are_compared():
    classifier = tiny(position=EveryLayer())
    expected = cosine_similarity(classifier.encoder.position.tables[0].table.detach().flatten(0, 1).numpy())
    assert_close(position_similarity(classifier).reshape(9, 9).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", [RoPE2d(), RelativeBias(), NoPosition()])
def test_positions_that_are_no_vectors_are_refused(position):
    kind = type(position).__name__
    with pytest.raises(InputError, match=f"^{kind} adds no vectors to patches, so there is nothing to compare; choose"):
        position_similarity(tiny(position=position))


def test_a_resnet_and_an_empty_grid_are_refused():
    resnet = ClassifierConfig(encoder=ResNetConfig(units=(1,)), pooling=Mean(), num_classes=3).build()
    with pytest.raises(InputError, match=r"^only a ViT can be inspected so, not a ResNet; choose a ViT$"):
        position_similarity(resnet)
    with pytest.raises(InputError, match=r"^a grid has at least one row and one column, got 0 x 3$"):
        position_similarity(tiny(), grid=(0, 3))
