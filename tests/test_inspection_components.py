"""Features as colours and as places in the plane."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from torch.testing import assert_close

from real_model import real_model, real_photos
from vitreous.errors import InputError
from vitreous.inspection.components import feature_colours, layout, principal_components

PATCHES = torch.randn(3, 4, 5, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3


def by_sklearn(patches: torch.Tensor) -> np.ndarray:
    """Colours, but for the sign of components."""
    values = PCA(3, svd_solver="full").fit_transform(patches.flatten(0, 2).double().numpy())
    low, high = np.percentile(values, 1, axis=0), np.percentile(values, 99, axis=0)
    return np.clip((values - low) / (high - low), 0, 1)


def assert_same_colours(found: torch.Tensor, expected: np.ndarray) -> None:
    for ours, theirs in zip(found.flatten(0, 2).double().numpy().T, expected.T):
        turned = 1 - theirs if np.corrcoef(ours, theirs)[0, 1] < 0 else theirs
        np.testing.assert_allclose(ours, turned, atol=1e-5)


def test_colours_equal_sklearns_components_scaled_over_all_images():
    found = feature_colours(PATCHES)
    assert found.shape == (3, 4, 5, 3)
    assert_same_colours(found, by_sklearn(PATCHES))
    assert found.min() == 0
    assert found.max() == 1


@torch.no_grad()
def test_colours_of_real_photos_equal_sklearns(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 4)
    tokens = ours.encoder(photos)
    expected = by_sklearn(theirs.forward_features(photos.double())[:, 1:].unflatten(1, (14, 14)))
    assert_same_colours(feature_colours(tokens.patches.unflatten(1, tokens.grid)), expected)


def test_one_colour_means_one_thing_in_all_images():
    twice = torch.cat([PATCHES, PATCHES[1:2]])
    colours = feature_colours(twice)
    assert torch.equal(colours[1], colours[3])


def test_an_artefact_patch_does_not_darken_the_rest():
    with_artefact = PATCHES.repeat(4, 1, 1, 1)
    with_artefact[0, 0, 0] = 1e4
    colours = feature_colours(with_artefact).flatten(0, 2)
    assert colours[1:].std(dim=0).min() > 0.15


def test_components_keep_their_sign_whatever_the_order_of_the_rows():
    rows = PATCHES.flatten(0, 2)
    found, explained = principal_components(rows, 4)
    again, _ = principal_components(rows.flip(0), 4)
    assert_close(found, again)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()
    fitted = PCA(8, svd_solver="full").fit(rows.double().numpy())
    np.testing.assert_allclose(explained, fitted.explained_variance_ratio_[:4])
    np.testing.assert_allclose(np.abs((found.numpy() * fitted.components_[:4]).sum(1)), 1)


def clusters() -> torch.Tensor:
    """Ten images of each of three kinds."""
    generator = torch.Generator().manual_seed(0)
    return 20 * torch.eye(3, 16).repeat_interleave(10, 0) + torch.randn(30, 16, generator=generator)


@pytest.mark.filterwarnings("default")  # of umap-learn and of what it imports
@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])  # umap-learn compiles
def test_images_that_are_alike_lie_close(method):
    if method == "umap":
        pytest.importorskip("umap")
    found = layout(clusters(), method=method)
    assert found.shape == (30, 2)
    distances, kind = cdist(found, found) + np.eye(30) * 1e9, np.arange(30) // 10
    assert (kind[distances.argmin(1)] == kind).all()
    assert torch.equal(found, layout(clusters(), method=method))


def test_a_few_images_are_laid_out_and_fewer_refused():
    assert layout(clusters()[:4]).isfinite().all()
    with pytest.raises(InputError, match=r"^a layout needs at least 4 images, got 3$"):
        layout(clusters()[:3])


@pytest.mark.parametrize(
    ("method", "library", "extra"), [("tsne", "sklearn.manifold", "plot"), ("umap", "umap", "umap")]
)
def test_a_library_that_is_missing_is_named_with_its_extra(method, library, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"pip install 'vitreous\[{extra}\]'$"):
        layout(clusters(), method=method)


def test_features_of_two_channels_have_no_three_colours():
    with pytest.raises(InputError, match=r"^60 rows of 2 numbers have 2 principal components, not 3; ask for fewer$"):
        feature_colours(PATCHES[..., :2])


def test_colours_need_no_library_that_pictures_need():
    code = "import sys, vitreous.inspection.components; print([m for m in ('sklearn', 'umap') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
