import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from contracts import variants
from references import random_images, randomise, tiny, twins
from vitreous.block import Axial
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.position import EveryLayer, Learned, Learned2d, NoPosition, Position, RoPE2d, Shape, SinCos2d, Where
from vitreous.relative import RelativeBias, RelativeKeys
from vitreous.tokens import coordinates

CPU = torch.device("cpu")
SHAPE = Shape(width=64, depth=2, num_heads=4, grid=(1, 1), class_token=True)
POSITIONS = [
    *variants(Position),
    Learned(class_token_slot=False),
    EveryLayer(shared=True),
    EveryLayer(kind=Learned2d()),
    EveryLayer(kind=SinCos2d()),
    RelativeKeys(shared=True),
    RelativeBias(resampling="bicubic"),
]


def big_visions_vectors(height, width_in_patches, width, temperature=10_000.0):
    """big_vision's `posemb_sincos_2d`, in NumPy float64."""
    y, x = np.mgrid[:height, :width_in_patches]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1))
    y, x = np.einsum("m,d->md", y.flatten(), omega), np.einsum("m,d->md", x.flatten(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def maes_vectors(height, width_in_patches, width):
    """MAE's `get_2d_sincos_pos_embed`, in NumPy float64."""
    across, down = np.meshgrid(np.arange(width_in_patches), np.arange(height))  # "here w goes first"
    halves = []
    for places in (across, down):
        omega = 1.0 / 10_000 ** (np.arange(width // 4) / (width / 4))
        angles = np.outer(places.reshape(-1), omega)
        halves += [np.sin(angles), np.cos(angles)]
    return np.concatenate(halves, axis=1)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (37, 2)])
@pytest.mark.parametrize(
    ("config", "formula"), [(SinCos2d(), big_visions_vectors), (SinCos2d(reach_temperature=False), maes_vectors)]
)
def test_sine_cosine_positions_equal_their_projects_formula(grid, config, formula):
    vectors = config.build(SHAPE).vectors(grid, CPU).flatten(0, 1)
    assert_close(vectors.double(), torch.from_numpy(formula(*grid, 64)), atol=1e-5, rtol=0)


def dinov3_angles(height, width, head_dim, base):
    """DINOv3's formula ("separate" coordinates, no augmentation), in NumPy float64."""
    rows, columns = (np.arange(0.5, height) / height, np.arange(0.5, width) / width)
    coords = 2.0 * np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2) - 1.0
    periods = base ** (2 * np.arange(head_dim // 4) / (head_dim // 2))
    return (2 * math.pi * coords[:, :, None] / periods[None, None, :]).reshape(len(coords), -1)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (37, 2)])
@pytest.mark.parametrize("base", [100.0, 10_000.0])
def test_rotary_angles_equal_dinov3s_formula(grid, base):
    angles = RoPE2d(base=base).build(SHAPE).angles(coordinates(grid, CPU)[None])[0]
    assert_close(angles.double(), torch.from_numpy(dinov3_angles(*grid, 16, base)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("resampling", ["aligned_bilinear", "bilinear"])
def test_learned_2d_positions_are_columns_then_rows(resampling):
    embedding = randomise(Learned2d(resampling=resampling).build(Shape(**{**vars(SHAPE), "grid": (3, 5)})))
    for grid in [(3, 5), (6, 4)]:
        along = {"mode": "linear", "align_corners": True if resampling == "aligned_bilinear" else None}
        row, column = (
            F.interpolate(table.reshape(1, -1, 32).mT, size=size, **along)[0].mT
            for table, size in ((embedding.row, grid[0]), (embedding.column, grid[1]))
        )
        expected = torch.stack([torch.cat([column[j], row[i]]) for i in range(grid[0]) for j in range(grid[1])])
        assert_close(embedding.vectors(grid, CPU).flatten(0, 1), expected, atol=1e-6, rtol=0)


def plain_vectors(embedding, config, grid):
    """What the paper adds to class token, register and patches, token by token."""
    patches = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            if isinstance(config, Learned):
                patches.append(embedding.table[i, j])
            elif isinstance(config, Learned2d):
                patches.append(torch.cat([embedding.column[0, j], embedding.row[i, 0]]))
            else:
                patches.append(torch.from_numpy(big_visions_vectors(*grid, 32)[i * grid[1] + j]).float())
    slot = embedding.class_token if getattr(config, "class_token_slot", False) else torch.zeros(1, 32)
    return torch.cat([slot, torch.zeros(1, 32), torch.stack(patches)])


@pytest.mark.parametrize("when", ["stem", "every layer", "every layer, shared"])
@pytest.mark.parametrize(
    "kind",
    [Learned(), Learned(class_token_slot=False), Learned2d(), Learned2d(class_token_slot=False), SinCos2d()],
)
@torch.no_grad()
def test_every_cell_of_table_8_equals_its_formula(kind, when):
    position = kind if when == "stem" else EveryLayer(kind=kind, shared="shared" in when)
    encoder = randomise(tiny(position=position, num_registers=1, image_size=(24, 40)).build())
    images, grid = random_images(2, 3, 24, 40), (3, 5)
    tables = [encoder.position] if when == "stem" else encoder.position.tables
    assert len(tables) == (2 if when == "every layer" else 1)
    x = torch.cat([encoder.prefix.expand(2, -1, -1), encoder.stem(images).flatten(2).mT], dim=1)
    for layer, block in enumerate(encoder.blocks):
        if layer == 0 or when != "stem":
            x = x + plain_vectors(tables[layer if when == "every layer" else 0], kind, grid)
        x = block(x, Where(grid))
    x, found = encoder.norm(x), encoder(images)
    assert_close(torch.cat([found.prefix, found.patches], dim=1), x, atol=1e-5, rtol=0)


def test_a_shared_table_is_counted_once():
    one, each = (tiny(depth=3, position=EveryLayer(shared=shared)).build() for shared in (True, False))
    at_stem = sum(p.numel() for p in tiny(depth=3).build().parameters())
    assert sum(p.numel() for p in one.parameters()) == at_stem
    assert sum(p.numel() for p in each.parameters()) == at_stem + 2 * 17 * 32


def two_orders(patches):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(patches, generator=generator) for _ in range(2)])


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@pytest.mark.parametrize("position", POSITIONS, ids=str)
@torch.no_grad()
def test_patches_may_come_in_any_order_once_they_know_their_places(position, size):
    encoder = randomise(tiny(position=position, num_registers=2).build())
    tokens = encoder.embed(random_images(2, 3, *size))
    order = two_orders(tokens.patches.shape[1])
    shuffled, straight = encoder.encode(tokens.keep(order)), encoder.encode(tokens)
    assert_close(shuffled.patches, straight.keep(order).patches, atol=2e-5, rtol=0)
    assert_close(shuffled.prefix, straight.prefix, atol=2e-5, rtol=0)


@pytest.mark.parametrize("position", POSITIONS, ids=str)
@torch.no_grad()
def test_kept_patches_are_where_they_were_in_the_whole_image(position):
    encoder = randomise(tiny(position=position).build())
    tokens = encoder.embed(random_images(2, 3, 32, 32))
    index = two_orders(16)[:, :5]
    kept, queries = tokens.keep(index), random_images(2, 4, 17, 8)
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), index + 1], dim=1)  # the class token, then the patches
    x = random_images(2, 17, 32)
    pick = torch.arange(2)[:, None]
    for layer, (part, whole) in enumerate(zip(*(encoder.position.attention(t, 2) for t in (kept, tokens)))):
        added = encoder.position.before_block(x, layer, tokens) - x
        added_to_kept = encoder.position.before_block(x[pick, rows], layer, kept) - x[pick, rows]
        assert_close(added_to_kept, added[pick, rows])
        assert (part.bias is None) == (whole.bias is None)
        assert (part.rotation is None) == (whole.rotation is None)
        if part.rotation is not None:
            for ours, theirs in zip(part.rotation, whole.rotation):
                assert_close(ours, theirs.expand(2, -1, -1)[pick, rows])
        if part.bias is not None:
            bias = part.bias(queries.transpose(1, 2)[pick, rows].transpose(1, 2))
            expected = whole.bias(queries).expand(2, -1, -1, -1)
            for image in range(2):
                theirs = expected[image][:, rows[image]][:, :, rows[image]]
                assert_close(bias.expand(2, -1, -1, -1)[image], theirs)


@pytest.mark.parametrize("position", [p for p in POSITIONS if not isinstance(p, NoPosition)], ids=str)
@torch.no_grad()
def test_every_position_tells_patches_apart(position):
    encoder = randomise(tiny(position=position).build())
    patches = encoder(torch.ones(1, 3, 32, 32)).patches[0]
    assert torch.pdist(patches).min() > 1e-4


@torch.no_grad()
def test_without_positions_patches_are_a_bag():
    encoder = randomise(tiny(position=NoPosition()).build())
    assert torch.pdist(encoder(torch.ones(1, 3, 32, 32)).patches[0]).max() < 1e-5


SIZES = [(32, 32), (64, 64), (48, 16)]


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_rotary_positions_equal_timms_at_any_image_size(size):
    config = ClassifierConfig(encoder=tiny(position=RoPE2d(), num_registers=2), num_classes=3)
    ours, theirs = twins(config, img_size=size)
    images = random_images(2, 3, *size)
    assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("position", [Learned(), Learned(class_token_slot=False), SinCos2d()])
@torch.no_grad()
def test_positions_that_are_added_equal_timms_with_the_table_of_that_size(size, position):
    config = ClassifierConfig(encoder=tiny(position=position), num_classes=3)
    ours, grid = randomise(config.build()), (size[0] // 8, size[1] // 8)
    _, theirs = twins(config, dynamic_img_size=True)
    theirs.set_input_size(size)
    if isinstance(position, SinCos2d):
        places = big_visions_vectors(*grid, 32)
    else:
        table = ours.encoder.position.table.numpy()
        places = scipy.ndimage.zoom(table, (grid[0] / 4, grid[1] / 4, 1), order=1).reshape(-1, 32)
    theirs.pos_embed[:, -len(places) :] = torch.from_numpy(places)
    images = random_images(2, 3, *size)
    assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_the_place_of_the_class_token_is_added_to_it_alone():
    encoder = randomise(tiny(num_registers=2).build())
    added = encoder.position.add_prefix(encoder.prefix) - encoder.prefix
    assert_close(added[0], encoder.position.class_token[0])
    assert not added[1:].any()


@pytest.mark.parametrize("position", [Learned(), Learned2d(), EveryLayer(), RelativeBias()])
def test_without_a_class_token_there_is_no_place_for_one(position):
    with_token, without = (tiny(position=position, class_token=token).build() for token in (True, False))
    names = [
        {name for name, _ in encoder.position.named_parameters() if name.endswith("class_token")}
        for encoder in (with_token, without)
    ]
    assert names[0]
    assert not names[1]
    assert without(torch.zeros(1, 3, 32, 32)).prefix.shape == (1, 0, 32)


@pytest.mark.parametrize(
    ("position", "changes", "message"),
    [
        (SinCos2d(), {"width": 30, "num_heads": 2}, "width of 8, 12, 16"),
        (SinCos2d(), {"width": 4, "num_heads": 1}, "width of 8, 12, 16"),
        (Learned2d(), {"width": 27, "num_heads": 3}, "odd width 27"),
        (EveryLayer(kind=SinCos2d()), {"width": 30, "num_heads": 2}, "width of 8, 12, 16"),
        (RoPE2d(), {"num_heads": 16}, "divisible by 4, got 2"),
    ],
)
def test_a_width_the_formula_cannot_fill_is_refused(position, changes, message):
    with pytest.raises(InputError, match=message):
        tiny(position=position, **changes).build()


@pytest.mark.parametrize("position", [RelativeBias(), RelativeKeys()])
def test_axial_blocks_refuse_relative_positions(position):
    encoder = tiny(position=position, block=Axial(), class_token=False).build()
    with pytest.raises(InputError, match="a position of an absolute or rotary kind"):
        encoder(torch.zeros(1, 3, 32, 32))
