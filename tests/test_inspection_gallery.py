"""Strips of original, masked and reconstructed images."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vitreous.errors import InputError
from vitreous.inspection.gallery import reconstruction_gallery

IMAGES = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
GUESSED = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(1))
MASK = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) < 0.5


def test_strips_are_the_image_what_was_seen_of_it_and_what_was_made_of_it():
    strips = reconstruction_gallery(IMAGES, MASK, GUESSED, patch_size=4).numpy()
    assert strips.shape == (3, 8, 36, 3)
    for i in range(3):
        original = IMAGES[i].numpy().transpose(1, 2, 0)
        seen, made = original.copy(), original.copy()
        for patch in np.flatnonzero(MASK[i]):
            row, column = 4 * (patch // 3), 4 * (patch % 3)
            place = slice(row, row + 4), slice(column, column + 4)
            seen[place] = 0.5
            made[place] = np.clip(GUESSED[i].numpy().transpose(1, 2, 0)[place], 0, 1)
        np.testing.assert_array_equal(strips[i], np.concatenate([original, seen, made], axis=1))


def test_where_nothing_is_hidden_all_three_are_the_image():
    strips = reconstruction_gallery(IMAGES, torch.zeros(3, 6, dtype=torch.bool), GUESSED, patch_size=4)
    for part in strips.chunk(3, dim=2):
        assert_close(part, IMAGES.permute(0, 2, 3, 1), rtol=0, atol=0)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(
        InputError, match=r"^reconstructions are as large as their images, 3 x 3 x 8 x 12, got 2 x 3 x 8"
    ):
        reconstruction_gallery(IMAGES, MASK, GUESSED[:2], patch_size=4)
    with pytest.raises(InputError, match=r"in patches of 4 need a mask of 3 x 6, got 3 x 5$"):
        reconstruction_gallery(IMAGES, MASK[:, :5], GUESSED, patch_size=4)
