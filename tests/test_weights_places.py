import pytest
import torch

from vitreous.errors import InputError
from vitreous.weights.places import join_places, split_places


@pytest.mark.parametrize(
    ("tokens", "prefix", "grid", "expected"),
    [
        (197, [1], None, (1, 14, 14)),
        (196, [0], None, (0, 14, 14)),
        (198, [2, 0], None, (2, 14, 14)),
        (196, [4, 0], None, (0, 14, 14)),
        (25, [1], (4, 6), (1, 4, 6)),
        (17, [1], None, (1, 4, 4)),
    ],
)
def test_places_are_told_apart_and_put_together_again(tokens, prefix, grid, expected):
    places = torch.randn(tokens, 3)
    of_prefix, table = split_places("pos_embed", places, prefix=prefix, grid=grid)
    assert (len(of_prefix), *table.shape) == (*expected, 3)
    assert torch.equal(join_places(of_prefix, table)[0], places)
    assert torch.equal(join_places(None, table)[0], places[expected[0] :])


@pytest.mark.parametrize(
    ("tokens", "prefix", "grid"), [(198, [1], None), (1, [1], None), (0, [0], None), (26, [1], (4, 6))]
)
def test_places_of_no_grid_are_one_line(tokens, prefix, grid):
    wanted = "grid of 4 x 6 patches" if grid else "square grid of patches"
    with pytest.raises(InputError, match=rf"^pos_embed has {tokens} places, no {wanted} after {prefix[0]} of other"):
        split_places("pos_embed", torch.zeros(tokens, 3), prefix=prefix, grid=grid)
