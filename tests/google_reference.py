"""The forward passes of Google's published checkpoints in NumPy float64, read from the npz layout itself.

Nothing here knows vitreous or PyTorch. Sources, read line by line: google-research/vision_transformer
(`vit_jax/models_vit.py`, `models_resnet.py`, `checkpoint.py`), google-research/big_vision (`models/vit.py`,
`models/bit_paper.py`) and google-research/big_transfer (`bit_jax/models.py`). Where the three disagree, each forward
pass follows its own.
"""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

Tree = dict[str, np.ndarray]
"""Arrays under the names of the file, "/" between levels."""

Array = np.ndarray
Images = Float[np.ndarray, "batch row column channel"]
Map = Float[np.ndarray, "batch row column channel"]
Tokens = Float[np.ndarray, "batch token width"]
Vectors = Float[np.ndarray, "batch width"]
Logits = Float[np.ndarray, "batch label"]
Padding = Literal["SAME"] | int

PUBLISHED_NAMES = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
CURRENT_NAMES = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
"""The same four modules of a block: flax counted all modules together, and now counts each class for itself."""

PREFIXES = ("", "opt/target/", "params/img/", "params/")


# ---------------------------------------------------------------------------------------------------------- trees


def vit_jax_tree(
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    patch: int,
    image: int,
    classes: int,
    representation: int | None = None,
    class_token: bool = True,
    hybrid_layers: Sequence[int] | None = None,
    resnet_width: int = 64,
    old_group_norm: bool = False,
    current_names: bool = False,
    prefix: str = "",
    seed: int = 0,
) -> Tree:
    """Random float32 weights under the names of google-research/vision_transformer.

    `hybrid_layers` counts the units of each ResNet stage; `()` is R+Ti, the root alone. `patch` counts pixels of what
    the patches are cut from, the image or the ResNet's map, and `image` pixels of the image. The switches change names
    and shapes, never numbers.
    """
    draw = _Draw(seed)
    tree: Tree = {}
    channels, side = 3, image
    if hybrid_layers is not None:
        channels, side = resnet_width, _halved(_halved(image))
        tree["conv_root/kernel"] = draw.filters(7, 7, 3, resnet_width)
        tree |= _group_norm_tree(draw, "gn_root", resnet_width, old=old_group_norm)
        for stage, num_units in enumerate(hybrid_layers, 1):
            middle = resnet_width * 2 ** (stage - 1)
            side = side if stage == 1 else _halved(side)
            for unit in range(1, num_units + 1):
                name = f"block{stage}/unit{unit}"
                shapes = {
                    "1": (1, 1, channels, middle),
                    "2": (3, 3, middle, middle),
                    "3": (1, 1, middle, 4 * middle),
                }
                if unit == 1:
                    shapes["_proj"] = (1, 1, channels, 4 * middle)
                for suffix, shape in shapes.items():
                    tree[f"{name}/conv{suffix}/kernel"] = draw.filters(*shape)
                    tree |= _group_norm_tree(draw, f"{name}/gn{suffix}", shape[-1], old=old_group_norm)
                channels = 4 * middle
    tree["embedding/kernel"] = draw.kernel(patch, patch, channels, width)
    tree["embedding/bias"] = draw.vector(width)
    if class_token:
        tree["cls"] = draw.vector(1, 1, width)
    positions = (side // patch) ** 2 + class_token
    tree["Transformer/posembed_input/pos_embedding"] = draw.vector(1, positions, width)
    names = CURRENT_NAMES if current_names else PUBLISHED_NAMES
    for index in range(depth):
        tree |= _under(f"Transformer/encoderblock_{index}/", _block_tree(draw, names, width, heads, mlp_dim))
    tree |= _layer_norm_tree(draw, "Transformer/encoder_norm", width)
    if representation is not None:
        tree |= _dense_tree(draw, "pre_logits", width, representation)
    tree |= _dense_tree(draw, "head", representation or width, classes)
    return _under(prefix, tree)


def big_vision_tree(
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    patch: int,
    image: int,
    classes: int | None,
    pool: Literal["gap", "map", "tok"] = "gap",
    scanned: bool = False,
    bfloat16: bool = False,
    prefix: str = "params/",
    seed: int = 0,
) -> Tree:
    """Random weights under the names of google-research/big_vision; without `classes` there is no head, as in SigLIP.

    `scanned` stacks the layers on axis 0, as `lax.scan` needs them. `bfloat16` rounds, and stores what NumPy reads back
    from a file of such arrays: two opaque bytes a number.
    """
    draw = _Draw(seed)
    tree: Tree = {
        "embedding/kernel": draw.kernel(patch, patch, 3, width),
        "embedding/bias": draw.vector(width),
        "pos_embedding": draw.vector(1, (image // patch) ** 2, width),
    }
    if pool == "tok":
        tree["cls"] = draw.vector(1, 1, width)
    blocks = [_block_tree(draw, CURRENT_NAMES, width, heads, mlp_dim) for _ in range(depth)]
    if scanned:
        tree |= {f"Transformer/encoderblock/{name}": np.stack([block[name] for block in blocks]) for name in blocks[0]}
    else:
        for index, block in enumerate(blocks):
            tree |= _under(f"Transformer/encoderblock_{index}/", block)
    tree |= _layer_norm_tree(draw, "Transformer/encoder_norm", width)
    if pool == "map":
        tree["MAPHead_0/probe"] = draw.vector(1, 1, width)
        tree |= _attention_tree(draw, "MAPHead_0/MultiHeadDotProductAttention_0", width, heads)
        tree |= _layer_norm_tree(draw, "MAPHead_0/LayerNorm_0", width)
        tree |= _mlp_tree(draw, "MAPHead_0/MlpBlock_0", width, mlp_dim)
    if classes is not None:
        tree |= _dense_tree(draw, "head", width, classes)
    if bfloat16:
        tree = {name: as_bfloat16(array) for name, array in tree.items()}
    return _under(prefix, tree)


def bit_tree(*, layers: Sequence[int], classes: int, width: int = 64, seed: int = 0) -> Tree:
    """Random float32 weights under the names of google-research/big_transfer; `width` is the root's, 64 for "x1"."""
    draw = _Draw(seed)

    def norm(name: str, channels: int) -> Tree:
        return {f"{name}/group_norm/gamma": draw.scale(channels), f"{name}/group_norm/beta": draw.vector(channels)}

    tree: Tree = {"root_block/standardized_conv2d/kernel": draw.filters(7, 7, 3, width)}
    channels = width
    for stage, num_units in enumerate(layers, 1):
        middle = width * 2 ** (stage - 1)
        for unit in range(1, num_units + 1):
            name = f"block{stage}/unit{unit:02d}"
            if unit == 1:
                tree[f"{name}/a/proj/standardized_conv2d/kernel"] = draw.filters(1, 1, channels, 4 * middle)
            shapes = {"a": (1, 1, channels, middle), "b": (3, 3, middle, middle), "c": (1, 1, middle, 4 * middle)}
            for letter, shape in shapes.items():
                tree[f"{name}/{letter}/standardized_conv2d/kernel"] = draw.filters(*shape)
                tree |= norm(f"{name}/{letter}", shape[2])
            channels = 4 * middle
    tree["group_norm/gamma"], tree["group_norm/beta"] = draw.scale(channels), draw.vector(channels)
    tree["head/conv2d/kernel"] = draw.kernel(1, 1, channels, classes)
    tree["head/conv2d/bias"] = draw.vector(classes)
    return _under("resnet/", tree)


def save_npz(path: str | PathLike[str], tree: Tree) -> None:
    """Writes `tree` as Google's files are: an uncompressed npz with one array a name."""
    with open(path, "wb") as file:  # given a name, savez would append ".npz" to it
        np.savez(file, **tree)  # pyright: ignore[reportArgumentType]


def as_bfloat16(array: Array) -> Array:
    """`array` rounded to bfloat16, half to even, as NumPy loads it: dtype void of two bytes. Finite numbers only."""
    bits = array.astype("<f4").view("<u4")
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return (rounded >> 16).astype("<u2").view("V2")


def from_bfloat16(array: Array) -> Array:
    """The float32 numbers of an array that `as_bfloat16` made, or NumPy loaded."""
    return (array.view("<u2").astype("<u4") << 16).view("<f4")


# --------------------------------------------------------------------------------------------------------- forwards


def vit_jax_forward(tree: Tree, images: Images) -> Logits:
    """What `vit_jax.models_vit.VisionTransformer` returns for weights in either numbering, in evaluation mode."""
    tree, features = _read(tree), images.astype(np.float64)
    if "conv_root/kernel" in tree:
        features = _hybrid_stem(tree, features)
    tokens = _patches(tree, features)
    if "cls" in tree:
        tokens = _with_class_token(tree["cls"], tokens)
    tokens = tokens + tree["Transformer/posembed_input/pos_embedding"]  # also to the class token
    tokens = _encoder(tree, tokens)
    return _head(tree, tokens[:, 0] if "cls" in tree else tokens.mean(1))


def big_vision_forward(tree: Tree, images: Images) -> Logits:
    """What `big_vision.models.vit` returns in evaluation mode: logits, or what its head would see if it has none."""
    tree = _read(tree)
    tokens = _patches(tree, images.astype(np.float64)) + tree["pos_embedding"]
    if "cls" in tree:
        tokens = _with_class_token(tree["cls"], tokens)  # after the positions, which know patches only
    tokens = _encoder(tree, tokens)
    if "MAPHead_0/probe" in tree:
        pooled = _map_head(_branch(tree, "MAPHead_0/"), tokens)
    else:
        pooled = tokens[:, 0] if "cls" in tree else tokens.mean(1)
    return _head(tree, pooled)


def bit_forward(tree: Tree, images: Images) -> Logits:
    """What `bit_jax.models.ResNet`, a ResNet-v2, returns."""
    tree = _branch(_read(tree), "resnet/")

    def conv(name: str, x: Map, *, stride: int = 1) -> Map:
        kernel = tree[f"{name}/standardized_conv2d/kernel"]
        centred = kernel - kernel.mean((0, 1, 2))
        kernel = centred / np.sqrt(np.square(centred).mean((0, 1, 2)) + 1e-10)
        return _convolution(x, kernel, stride=stride, padding=len(kernel) // 2)

    def norm_relu(name: str, x: Map) -> Map:
        gamma, beta = tree[f"{name}group_norm/gamma"], tree[f"{name}group_norm/beta"]
        return _relu(_group_norm(x, gamma, beta, eps=1e-5))

    x = conv("root_block", images.astype(np.float64), stride=2)
    x = _max_pool(x, padding=1, fill=0.0)  # not -inf: there is no ReLU before, and Google pads with zeros
    for stage, unit, first in _units(tree, "block{}/unit{:02d}"):
        name = f"block{stage}/unit{unit:02d}"
        stride = 2 if first and stage > 1 else 1
        inner = norm_relu(f"{name}/a/", x)
        residual = conv(f"{name}/a/proj", inner, stride=stride) if first else x
        inner = conv(f"{name}/a", inner)
        inner = conv(f"{name}/b", norm_relu(f"{name}/b/", inner), stride=stride)
        inner = conv(f"{name}/c", norm_relu(f"{name}/c/", inner))
        x = inner + residual
    x = norm_relu("", x).mean((1, 2))
    return x @ tree["head/conv2d/kernel"][0, 0] + tree["head/conv2d/bias"]


def interpolate_positions(
    table: Float[np.ndarray, "1 position width"], grid: int, *, class_token: bool = True
) -> Float[np.ndarray, "1 new_position width"]:
    """A square table for `grid` x `grid` patches (`vit_jax.checkpoint.interpolate_posembed`).

    To the letter, and so with its fault: where `(old - 1) / (new - 1) * (new - 1)` rounds up in float64, as from 28 to
    14 and from 32 to 16, SciPy (1.17) takes the last row and column to be outside and fills them with zeros.
    """
    import scipy.ndimage

    kept, positions = table[:, : int(class_token)], table[0, int(class_token) :]
    old_grid = round(len(positions) ** 0.5)
    assert old_grid**2 == len(positions)
    zoom = (grid / old_grid, grid / old_grid, 1)
    positions = np.asarray(scipy.ndimage.zoom(positions.reshape(old_grid, old_grid, -1), zoom, order=1))
    return np.concatenate([kept, positions.reshape(1, grid**2, -1)], axis=1)


# ---------------------------------------------------------------------------------------------- parts of the forwards


def _hybrid_stem(tree: Tree, images: Images) -> Map:
    """The map that a hybrid cuts into patches: a ResNet-v1 with group norm and standardised convolutions."""

    def conv_norm(suffix: str, x: Map, *, stride: int = 1, unit: str = "") -> Map:
        kernel = tree[f"{unit}conv{suffix}/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        x = _convolution(x, kernel, stride=stride, padding="SAME")
        norm = _branch(tree, f"{unit}gn{suffix}/")
        return _group_norm(x, norm["scale"].reshape(-1), norm["bias"].reshape(-1), eps=1e-6)

    x = _relu(conv_norm("_root", images, stride=2))
    x = _max_pool(x, padding="SAME", fill=-np.inf)
    for stage, index, first in _units(tree, "block{}/unit{}"):
        unit = f"block{stage}/unit{index}/"
        stride = 2 if first and stage > 1 else 1
        residual = conv_norm("_proj", x, stride=stride, unit=unit) if first else x
        y = _relu(conv_norm("1", x, unit=unit))
        y = _relu(conv_norm("2", y, stride=stride, unit=unit))
        y = conv_norm("3", y, unit=unit)
        x = _relu(residual + y)
    return x


def _patches(tree: Tree, features: Map) -> Tokens:
    kernel = tree["embedding/kernel"]
    x = _convolution(features, kernel, stride=len(kernel), padding=0) + tree["embedding/bias"]
    return x.reshape(len(x), -1, x.shape[-1])


def _with_class_token(token: Float[np.ndarray, "1 1 width"], tokens: Tokens) -> Tokens:
    return np.concatenate([np.repeat(token, len(tokens), axis=0), tokens], axis=1)


def _encoder(tree: Tree, tokens: Tokens) -> Tokens:
    for block in _blocks(_branch(tree, "Transformer/")):
        names = PUBLISHED_NAMES if "LayerNorm_2/scale" in block else CURRENT_NAMES
        norm_1, attention, norm_2, mlp = (_branch(block, f"{name}/") for name in names)
        inner = _layer_norm(norm_1, tokens)
        tokens = tokens + _attention(attention, inner, inner)
        tokens = tokens + _mlp(mlp, _layer_norm(norm_2, tokens))
    return _layer_norm(_branch(tree, "Transformer/encoder_norm/"), tokens)


def _map_head(tree: Tree, tokens: Tokens) -> Vectors:
    """Attention of one learned probe, then an MLP with a residual that starts after the attention."""
    probe = np.repeat(tree["probe"], len(tokens), axis=0)
    x = _attention(_branch(tree, "MultiHeadDotProductAttention_0/"), probe, tokens)
    x = x + _mlp(_branch(tree, "MlpBlock_0/"), _layer_norm(_branch(tree, "LayerNorm_0/"), x))
    return x[:, 0]


def _head(tree: Tree, pooled: Vectors) -> Logits:
    if "pre_logits/kernel" in tree:
        pooled = np.tanh(_dense(_branch(tree, "pre_logits/"), pooled))
    return _dense(_branch(tree, "head/"), pooled) if "head/kernel" in tree else pooled


def _attention(tree: Tree, queries: Tokens, keys: Tokens) -> Tokens:
    def project(name: str, x: Tokens) -> Float[np.ndarray, "batch token head channel"]:
        return np.einsum("btd,dhc->bthc", x, tree[f"{name}/kernel"]) + tree[f"{name}/bias"]

    query, key, value = project("query", queries), project("key", keys), project("value", keys)
    scores = np.einsum("bqhc,bkhc->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhc->bqhc", weights, value)
    return np.einsum("bqhc,hcd->bqd", mixed, tree["out/kernel"]) + tree["out/bias"]


def _mlp(tree: Tree, x: Tokens) -> Tokens:
    x = _dense(_branch(tree, "Dense_0/"), x)
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # flax's gelu is approximate
    return _dense(_branch(tree, "Dense_1/"), x)


def _dense(tree: Tree, x: Array) -> Array:
    return x @ tree["kernel"] + tree["bias"]


def _layer_norm(tree: Tree, x: Tokens) -> Tokens:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * tree["scale"] + tree["bias"]


def _group_norm(x: Map, scale: Array, bias: Array, *, eps: float) -> Map:
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean, variance = (moment(groups, axis=(1, 2, 4), keepdims=True) for moment in (np.mean, np.var))
    return ((groups - mean) / np.sqrt(variance + eps)).reshape(x.shape) * scale + bias


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _convolution(x: Map, kernel: Float[np.ndarray, "h w channel new"], *, stride: int, padding: Padding) -> Map:
    windows = _windows(x, size=len(kernel), stride=stride, padding=padding, fill=0.0)
    return np.tensordot(windows, kernel, axes=([4, 5, 3], [0, 1, 2]))


def _max_pool(x: Map, *, padding: Padding, fill: float) -> Map:
    return _windows(x, size=3, stride=2, padding=padding, fill=fill).max((4, 5))


def _windows(
    x: Map, *, size: int, stride: int, padding: Padding, fill: float
) -> Float[np.ndarray, "batch row column channel h w"]:
    """What each output of a square window sees. "SAME" pads for `ceil(side / stride)` outputs, the odd pixel last."""
    pads = [(0, 0)]
    for side in x.shape[1:3]:
        if padding == "SAME":
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads.append((total // 2, total - total // 2))
        else:
            pads.append((padding, padding))
    padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    return sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]


# ------------------------------------------------------------------------------------------------- names and numbers


def _read(tree: Tree) -> Tree:
    """`tree` in float64, without the prefix of a training checkpoint and without what is outside it."""
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}embedding/kernel" in tree), "")
    tree = _branch(tree, prefix)
    return {
        name: (from_bfloat16(array) if array.dtype == "V2" else array).astype(np.float64)
        for name, array in tree.items()
    }


def _branch(tree: Tree, prefix: str) -> Tree:
    return {name.removeprefix(prefix): array for name, array in tree.items() if name.startswith(prefix)}


def _under(prefix: str, tree: Tree) -> Tree:
    return {prefix + name: array for name, array in tree.items()}


def _blocks(tree: Tree) -> Iterator[Tree]:
    stacked = _branch(tree, "encoderblock/")
    if stacked:
        for index in range(len(stacked["LayerNorm_0/scale"])):
            yield {name: array[index] for name, array in stacked.items()}
        return
    index = 0
    while block := _branch(tree, f"encoderblock_{index}/"):
        yield block
        index += 1


def _units(tree: Tree, pattern: str) -> Iterator[tuple[int, int, bool]]:
    """Stage and unit of every residual unit, from one, and whether it is the first of its stage."""
    stage = 1
    while _branch(tree, pattern.format(stage, 1)):
        unit = 1
        while _branch(tree, pattern.format(stage, unit) + "/"):
            yield stage, unit, unit == 1
            unit += 1
        stage += 1


def _halved(side: int) -> int:
    return -(-side // 2)


class _Draw:
    """Random arrays that keep activations near one and leave no parameter at a value where it would not show."""

    def __init__(self, seed: int) -> None:
        # Not default_rng: only RandomState promises the same numbers in every NumPy (NEP 19).
        self._normal: Callable[[tuple[int, ...]], Array] = np.random.RandomState(seed).standard_normal

    def kernel(self, *shape: int, fan_in: int | None = None) -> Array:
        return self._float32(self._normal(shape) / np.sqrt(fan_in or np.prod(shape[:-1])))

    def filters(self, *shape: int) -> Array:
        """Kernels to be standardised: their deviations span powers of ten, so that a wrong epsilon shows."""
        return self._float32(self.kernel(*shape) * np.exp(self._normal((shape[-1],)) - 4))

    def vector(self, *shape: int) -> Array:
        return self._float32(0.3 * self._normal(shape))

    def scale(self, *shape: int) -> Array:
        return self._float32(1 + 0.3 * self._normal(shape))

    @staticmethod
    def _float32(array: Array) -> Array:
        return array.astype(np.float32)


def _block_tree(draw: _Draw, names: Sequence[str], width: int, heads: int, mlp_dim: int) -> Tree:
    norm_1, attention, norm_2, mlp = names
    return {
        **_layer_norm_tree(draw, norm_1, width),
        **_attention_tree(draw, attention, width, heads),
        **_layer_norm_tree(draw, norm_2, width),
        **_mlp_tree(draw, mlp, width, mlp_dim),
    }


def _attention_tree(draw: _Draw, name: str, width: int, heads: int) -> Tree:
    tree: Tree = {}
    for part in ("query", "key", "value"):
        tree[f"{name}/{part}/kernel"] = draw.kernel(width, heads, width // heads, fan_in=width)
        tree[f"{name}/{part}/bias"] = draw.vector(heads, width // heads)
    tree[f"{name}/out/kernel"] = draw.kernel(heads, width // heads, width)
    tree[f"{name}/out/bias"] = draw.vector(width)
    return tree


def _mlp_tree(draw: _Draw, name: str, width: int, mlp_dim: int) -> Tree:
    return _dense_tree(draw, f"{name}/Dense_0", width, mlp_dim) | _dense_tree(draw, f"{name}/Dense_1", mlp_dim, width)


def _dense_tree(draw: _Draw, name: str, width: int, new_width: int) -> Tree:
    return {f"{name}/kernel": draw.kernel(width, new_width), f"{name}/bias": draw.vector(new_width)}


def _layer_norm_tree(draw: _Draw, name: str, width: int) -> Tree:
    return {f"{name}/scale": draw.scale(width), f"{name}/bias": draw.vector(width)}


def _group_norm_tree(draw: _Draw, name: str, channels: int, *, old: bool) -> Tree:
    shape = (1, 1, 1, channels) if old else (channels,)
    return {f"{name}/scale": draw.scale(*shape), f"{name}/bias": draw.vector(*shape)}
