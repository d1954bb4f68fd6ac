"""Principal components of patch filters."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from explicit_attention import tiny
from real_model import real_model
from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.filters import filter_components
from vitreous.resnet import ResNetStem


def assert_equal_to_sklearns(classifier: Classifier, filters: np.ndarray, number: int) -> None:
    """Each up to its sign and its scale, which are undone."""
    found = filter_components(classifier, number=number)
    flat = filters.reshape(len(filters), -1).astype(np.float64)
    fitted = PCA(number, svd_solver="full").fit(flat)
    components = (found.images.permute(0, 3, 1, 2).flatten(1).double().numpy() - 0.5) * 2
    components /= np.linalg.norm(components, axis=1, keepdims=True)
    signs = np.sign((components * fitted.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(components, signs * fitted.components_, atol=2e-5)
    np.testing.assert_allclose(found.explained, fitted.explained_variance_ratio_, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_components_equal_sklearns(channels):
    classifier = tiny(channels=channels, patch_size=4)
    assert_equal_to_sklearns(classifier, classifier.encoder.stem.weight.detach().numpy(), 10)


def test_components_of_a_real_model_equal_sklearns(shared):
    ours, theirs = real_model(shared)
    assert_equal_to_sklearns(ours, theirs.patch_embed.proj.weight.detach().numpy(), 28)
    assert filter_components(ours).images.shape == (28, 16, 16, 3)


def test_pictures_are_centred_on_grey_and_reach_the_brightest_value():
    found = filter_components(tiny(), number=5)
    assert found.images.shape == (5, 4, 4, 3)
    assert found.images.min() >= 0
    assert torch.equal(found.images.flatten(1).amax(1), torch.ones(5))
    assert (found.explained.diff() <= 0).all()


def test_hybrids_and_too_many_components_are_refused():
    with pytest.raises(
        InputError, match=r"^filters of patches need a linear patch projection, not ResNetPatches; choose"
    ):
        filter_components(tiny(stem=ResNetStem(units=())))
    with pytest.raises(
        InputError, match=r"^32 rows of 48 numbers have 31 principal components, not 32; ask for fewer$"
    ):
        filter_components(tiny(), number=32)
