"""Nearest images by cosine."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from vitreous.errors import InputError
from vitreous.inspection import neighbours
from vitreous.inspection.neighbours import nearest

GENERATOR = torch.Generator().manual_seed(0)
GALLERY = torch.randn(200, 24, generator=GENERATOR) * torch.rand(200, 1, generator=GENERATOR) * 9
QUERIES = torch.randn(17, 24, generator=GENERATOR)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_neighbours_equal_sklearns(k, monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", 5)
    fitted = NearestNeighbors(n_neighbors=k, metric="cosine").fit(GALLERY.double().numpy())
    distance, index = fitted.kneighbors(QUERIES.double().numpy())
    found = nearest(QUERIES, GALLERY, k=k)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.similarity, 1 - distance, atol=1e-6)


def test_a_query_of_the_gallery_finds_itself_first_at_any_length():
    found = nearest(3 * GALLERY, GALLERY, k=2)
    assert torch.equal(found.index[:, 0], torch.arange(200))
    assert (found.similarity <= 1).all()


def test_too_many_neighbours_and_other_features_are_refused():
    with pytest.raises(InputError, match=r"^a gallery of 200 images has no 201 neighbours; ask for fewer, at least 1$"):
        nearest(QUERIES, GALLERY, k=201)
    with pytest.raises(InputError, match=r"^queries have 23 features and the gallery 24; embed both with one model$"):
        nearest(QUERIES[:, :23], GALLERY, k=1)
