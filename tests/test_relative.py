import pytest
import torch
import torch.nn.functional as F
from timm.layers import RelPosBias, RelPosMlp
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch.testing import assert_close

from references import random_images, randomise, tiny
from vitreous.errors import InputError
from vitreous.position import Shape
from vitreous.relative import RelativeBias, RelativeKeys, RelativeMLP
from vitreous.tokens import Tokens, coordinates


def shape(grid, *, class_token=False):
    return Shape(width=32, depth=2, num_heads=4, grid=grid, class_token=class_token)


def bias_of(embedding, queries, grid, *, prefix=0, layer=0):
    """What layer `layer` adds to the logits of a whole image of that grid."""
    batch = queries.shape[0]
    tokens = Tokens(
        prefix=torch.zeros(batch, prefix, 32),
        patches=torch.zeros(batch, grid[0] * grid[1], 32),
        coords=coordinates(grid, torch.device("cpu"))[None],
        grid=grid,
    )
    where = embedding.attention(tokens, 2)[layer]
    assert where.bias is not None
    return where.bias(queries)


def plain_key_logits(keys_by_offset, queries, grid, prefix):
    """Queries times the key of the offset between patches, pair by pair in float64 (App. D.4)."""
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    bias = torch.zeros(*queries.shape[:3], queries.shape[2], dtype=torch.float64)
    for q, (i, j) in enumerate(places):
        for k, (r, s) in enumerate(places):
            key = keys_by_offset(i - r, j - s).double()
            dots = (queries[:, :, prefix + q].double() * key).sum(-1)
            bias[:, :, prefix + q, prefix + k] = dots / queries.shape[-1] ** 0.5
    return bias


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6)])
@torch.no_grad()
def test_relative_keys_equal_the_papers_1d_table_at_the_training_grid(grid, prefix):
    embedding = randomise(RelativeKeys().build(shape(grid)))
    patches = grid[0] * grid[1]
    queries = random_images(2, 4, prefix + patches, 8)
    for layer in (0, 1):
        table = embedding.layers[layer].keys
        assert table.shape == (2 * patches - 1, 4, 8)
        direct = plain_key_logits(
            lambda down, across, table=table: table[down * grid[1] + across + patches - 1], queries, grid, prefix
        )
        bias = bias_of(embedding, queries, grid, prefix=prefix, layer=layer)
        assert_close(bias.double(), direct, atol=2e-6, rtol=0)


@pytest.mark.parametrize("grid", [(3, 5), (8, 2), (1, 1)])
@torch.no_grad()
def test_relative_keys_of_another_grid_are_resampled_by_where_patches_lie(grid):
    embedding = randomise(RelativeKeys().build(shape((4, 6))))
    table, queries = embedding.layers[0].keys, random_images(2, 4, grid[0] * grid[1], 8)
    offsets = torch.stack([table[i * 6 + j + 23] for i in range(-3, 4) for j in range(-5, 6)]).double()
    image = offsets.reshape(7, 11, 32).permute(2, 0, 1)[None]
    resized = F.interpolate(image, (2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear", align_corners=True)
    expected = plain_key_logits(
        lambda down, across: resized[0, :, down + grid[0] - 1, across + grid[1] - 1].reshape(4, 8), queries, grid, 0
    )
    assert_close(bias_of(embedding, queries, grid).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (6, 1)])
@torch.no_grad()
def test_relative_bias_is_timms(grid, class_token):
    embedding = randomise(RelativeBias().build(shape(grid, class_token=class_token)))
    theirs = RelPosBias(grid, num_heads=4, prefix_tokens=int(class_token))
    rows = [embedding.layers[0].table.flatten(0, 1)]
    rows += [embedding.layers[0].class_token] if class_token else []
    theirs.relative_position_bias_table.copy_(torch.cat(rows))
    queries = random_images(2, 4, class_token + grid[0] * grid[1], 8)
    bias = bias_of(embedding, queries, grid, prefix=int(class_token))
    assert torch.equal(bias, theirs.get_bias())


@pytest.mark.parametrize("resampling", ["aligned_bilinear", "bicubic"])
@pytest.mark.parametrize("grid", [(3, 5), (8, 2)])
@torch.no_grad()
def test_relative_bias_of_another_grid_is_that_of_the_resampled_table(grid, resampling):
    embedding = randomise(RelativeBias(resampling=resampling).build(shape((4, 6), class_token=True)))
    options = {"mode": "bilinear", "align_corners": True} if "bilinear" in resampling else {"mode": "bicubic"}
    image = embedding.layers[0].table.permute(2, 0, 1)[None]
    resized = F.interpolate(image, (2 * grid[0] - 1, 2 * grid[1] - 1), **options)[0]
    theirs = RelPosBias(grid, num_heads=4, prefix_tokens=1)
    theirs.relative_position_bias_table.copy_(torch.cat([resized.flatten(1).T, embedding.layers[0].class_token]))
    queries = random_images(2, 4, 1 + grid[0] * grid[1], 8)
    assert_close(bias_of(embedding, queries, grid, prefix=1), theirs.get_bias(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@torch.no_grad()
def test_relative_mlp_is_timms_at_any_grid(prefix):
    embedding = randomise(RelativeMLP(hidden=24).build(shape((4, 6))))
    theirs = RelPosMlp((4, 6), num_heads=4, hidden_dim=24, prefix_tokens=prefix, mode="cr").eval()
    names = {"mlp.fc1": embedding.layers[1].up, "mlp.fc2": embedding.layers[1].down}
    theirs.load_state_dict({f"{name}.{k}": v for name, layer in names.items() for k, v in layer.state_dict().items()})
    for grid in [(4, 6), (3, 5), (8, 2)]:
        theirs.set_window_size(grid)
        queries = random_images(2, 4, prefix + grid[0] * grid[1], 8)
        bias = bias_of(embedding, queries, grid, prefix=prefix, layer=1)
        assert_close(bias, theirs.get_bias(), atol=2e-6, rtol=0)


def timms(encoder):
    """timm's relative ViT with the weights of `encoder`."""
    config = encoder.config
    is_bias = isinstance(config.position, RelativeBias)
    theirs = VisionTransformerRelPos(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=0,
        global_pool="token" if config.class_token else "avg",
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        init_values=None,
        class_token=config.class_token,
        rel_pos_type="bias" if is_bias else "mlp",
        shared_rel_pos=config.position.shared,
    ).eval()
    words = {
        "stem.": "patch_embed.proj.",
        ".attention.qkv.": ".attn.qkv.",
        ".attention.out.": ".attn.proj.",
        ".mlp.up.": ".mlp.fc1.",
        ".mlp.down.": ".mlp.fc2.",
    }
    tensors = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("position.")}
    for ours, word in words.items():
        tensors = {name.replace(ours, word): tensor for name, tensor in tensors.items()}
    prefix = tensors.pop("prefix")
    if config.class_token:
        tensors["cls_token"] = prefix[None]
    for i, layer in enumerate(encoder.position.layers):
        place = "shared_rel_pos" if config.position.shared else f"blocks.{i}.attn.rel_pos"
        if is_bias:
            rows = [layer.table.flatten(0, 1), *([layer.class_token] if config.class_token else [])]
            tensors[f"{place}.relative_position_bias_table"] = torch.cat(rows)
        else:
            for name, tensor in layer.state_dict().items():
                tensors[f"{place}.mlp.{name.replace('up', 'fc1').replace('down', 'fc2')}"] = tensor
    theirs.load_state_dict(tensors)
    return theirs


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("kind", [RelativeBias, RelativeMLP])
@torch.no_grad()
def test_a_vit_with_relative_positions_equals_timms(kind, class_token, shared):
    config = tiny(position=kind(shared=shared), class_token=class_token, image_size=(24, 40))
    ours = randomise(config.build())
    images = random_images(2, 3, 24, 40)
    tokens = ours(images)
    expected = timms(ours).forward_features(images)
    assert_close(torch.cat([tokens.prefix, tokens.patches], dim=1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [RelativeKeys, RelativeBias, RelativeMLP])
def test_shared_positions_are_one_module_for_all_layers(kind):
    assert len(tiny(depth=3, position=kind(shared=True)).build().position.layers) == 1
    assert len(tiny(depth=3, position=kind()).build().position.layers) == 3


@pytest.mark.parametrize("kind", [RelativeKeys, RelativeBias, RelativeMLP])
@torch.no_grad()
def test_the_same_offset_has_the_same_bias_wherever_it_is(kind):
    queries = random_images(1, 4, 1, 8).expand(1, 4, 20, 8)
    bias = (
        bias_of(randomise(kind().build(shape((4, 5)))), queries, (4, 5))[0].unflatten(-1, (4, 5)).unflatten(1, (4, 5))
    )
    assert_close(bias[:, 1:, 1:, 1:, 1:], bias[:, :-1, :-1, :-1, :-1], atol=1e-6, rtol=0)


def test_a_network_without_hidden_channels_is_refused():
    with pytest.raises(InputError, match="hidden is 0; it must be 1 or more"):
        RelativeMLP(hidden=0)
