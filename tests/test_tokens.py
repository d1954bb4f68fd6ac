import pytest
import torch
from torch.testing import assert_close

from references import random_images, randomise, tiny
from vitreous.errors import InputError
from vitreous.resnet import ResNetConfig
from vitreous.tokens import Tokens, coordinates, gather

CPU = torch.device("cpu")


def of_grid(rows, columns, *, batch=1):
    """Tokens whose first channel counts the patches in raster order."""
    patches = torch.arange(rows * columns).float()[None, :, None].expand(batch, -1, 2)
    coords = coordinates((rows, columns), CPU)[None]
    return Tokens(prefix=torch.zeros(batch, 1, 2), patches=patches, coords=coords, grid=(rows, columns))


def test_coordinates_are_patch_centres_in_raster_order():
    expected = [[-0.5, -2 / 3], [-0.5, 0], [-0.5, 2 / 3], [0.5, -2 / 3], [0.5, 0], [0.5, 2 / 3]]
    assert_close(coordinates((2, 3), CPU), torch.tensor(expected))


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (37, 2), (14, 14), (500, 3), (63, 129)])
def test_places_are_the_rows_and_columns_of_the_grid(grid):
    expected = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    assert torch.equal(of_grid(*grid).places[0], expected)


def test_kept_patches_keep_their_places_image_by_image():
    tokens, index = of_grid(3, 5, batch=2), torch.tensor([[14, 2, 7], [0, 9, 2]])
    kept = tokens.keep(index)
    assert torch.equal(kept.patches[..., 0], index.float())
    assert torch.equal(kept.places, torch.stack([index // 5, index % 5], dim=-1))
    assert kept.grid == (3, 5)
    assert kept.prefix is tokens.prefix


def test_keeping_twice_is_keeping_once():
    tokens, first, second = of_grid(3, 5), torch.tensor([[14, 2, 7, 4]]), torch.tensor([[3, 0]])
    assert torch.equal(tokens.keep(first).keep(second).places, tokens.keep(first.gather(1, second)).places)


def test_gather_picks_rows_for_each_image():
    x = random_images(2, 6, 3)
    index = torch.tensor([[5, 0], [1, 1]])
    assert torch.equal(gather(x, index), torch.stack([x[0, [5, 0]], x[1, [1, 1]]]))


def test_fill_replaces_the_masked_patches_alone():
    tokens = randomise(tiny().build()).embed(random_images(2, 3, 32, 32))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = mask[1, 5] = True
    filled = tokens.fill(mask, torch.full((32,), 7.0))
    assert (filled.patches[mask] == 7).all()
    assert torch.equal(filled.patches[~mask], tokens.patches[~mask])


def test_an_image_size_is_a_side_or_height_and_width():
    square, wide = tiny(image_size=32), tiny(image_size=(32, 48))
    assert (square.image_shape, square.grid, square.pixels) == ((32, 32), (4, 4), "32 px")
    assert (wide.image_shape, wide.grid, wide.pixels) == ((32, 48), (4, 6), "32 x 48 px")
    assert tiny(image_size=(48, 48)).pixels == "48 px"


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (tiny(image_size=(33, 40), pad=True), (5, 5)),
        (ResNetConfig(units=(1, 1), image_size=(33, 40)), (5, 5)),
        (ResNetConfig(units=(1,), image_size=(1, 9)), (1, 3)),
    ],
)
def test_the_grid_of_a_config_is_that_of_its_tokens(config, grid):
    assert config.grid == grid
    tokens = config.build()(torch.zeros(1, 3, *config.image_shape))
    assert tokens.grid == grid
    assert tokens.patches.shape == (1, grid[0] * grid[1], config.features)


def test_a_size_without_pixels_is_refused():
    with pytest.raises(InputError, match="image_size is 0; it must be 1 or more"):
        tiny(image_size=(32, 0))
