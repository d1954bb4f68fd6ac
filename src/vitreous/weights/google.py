"""Google's .npz layouts: vision_transformer (the paper's own files, AugReg, hybrids), big_vision and BiT.

Kernels are stored for right multiplication, heads apart: a query's is (width, head, head_dim), a convolution's is
(height, width, in, out). Trained with the tanh form of GELU and flax's epsilons.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import Learned, SinCos2d, SinCos2dEmbedding
from vitreous.resnet import BIG_VISION, VISION_TRANSFORMER, ResNetConfig, ResNetStem
from vitreous.vit import ViTConfig
from vitreous.weights.infer import Foreign
from vitreous.weights.mapping import Rules, Tensors, join_parts, rename, shape, split_parts, with_axes
from vitreous.weights.places import join_places, split_places
from vitreous.weights.plain import beyond_linear, beyond_plain, refuse

PREFIXES = ("opt/target/", "params/img/", "params/", "img/")
BLOCK = "Transformer/encoderblock_*"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_1"
RULES: Rules = (
    ("encoder.stem.stages.*.*.shortcut", "block*/unit*/conv_proj"),
    ("encoder.stem.stages.*.*.shortcut_norm", "block*/unit*/gn_proj"),
    ("encoder.stem.stages.*.*.conv1", "block*/unit*/conv1"),
    ("encoder.stem.stages.*.*.conv2", "block*/unit*/conv2"),
    ("encoder.stem.stages.*.*.conv3", "block*/unit*/conv3"),
    ("encoder.stem.stages.*.*.norm1", "block*/unit*/gn1"),
    ("encoder.stem.stages.*.*.norm2", "block*/unit*/gn2"),
    ("encoder.stem.stages.*.*.norm3", "block*/unit*/gn3"),
    ("encoder.stem.root", "conv_root"),
    ("encoder.stem.norm", "gn_root"),
    ("encoder.stem.patches", "embedding"),
    ("encoder.stem", "embedding"),
    ("encoder.blocks.*.norm1", f"{BLOCK}/LayerNorm_0"),
    ("encoder.blocks.*.attention.query", f"{ATTENTION}/query"),
    ("encoder.blocks.*.attention.key", f"{ATTENTION}/key"),
    ("encoder.blocks.*.attention.value", f"{ATTENTION}/value"),
    ("encoder.blocks.*.attention.out", f"{ATTENTION}/out"),
    ("encoder.blocks.*.norm2", f"{BLOCK}/LayerNorm_2"),
    ("encoder.blocks.*.mlp.up", f"{BLOCK}/MlpBlock_3/Dense_0"),
    ("encoder.blocks.*.mlp.down", f"{BLOCK}/MlpBlock_3/Dense_1"),
    ("encoder.norm", "Transformer/encoder_norm"),
    ("pooling.query", "MAPHead_0/MultiHeadDotProductAttention_0/query"),
    ("pooling.key", "MAPHead_0/MultiHeadDotProductAttention_0/key"),
    ("pooling.value", "MAPHead_0/MultiHeadDotProductAttention_0/value"),
    ("pooling.out", "MAPHead_0/MultiHeadDotProductAttention_0/out"),
    ("pooling.norm", "MAPHead_0/LayerNorm_0"),
    ("pooling.mlp.up", "MAPHead_0/MlpBlock_0/Dense_0"),
    ("pooling.mlp.down", "MAPHead_0/MlpBlock_0/Dense_1"),
    ("head.representation", "pre_logits"),
    ("head.linear", "head"),
)
CURRENT_NAMES = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
"""What flax now calls the modules of a block; big_vision's files have these."""
BIT_RULES: Rules = (
    ("encoder.root", "resnet/root_block/standardized_conv2d"),
    ("encoder.stages.*.*.shortcut", "resnet/block*/unit*/a/proj/standardized_conv2d"),
    *(
        rule
        for number, letter in enumerate("abc", 1)
        for rule in (
            (f"encoder.stages.*.*.conv{number}", f"resnet/block*/unit*/{letter}/standardized_conv2d"),
            (f"encoder.stages.*.*.norm{number}", f"resnet/block*/unit*/{letter}/group_norm"),
        )
    ),
    ("encoder.norm", "resnet/group_norm"),
    ("head.linear", "resnet/head/conv2d"),
)


LAYERS: dict[str, Any] = {
    "attention": {"layer": "qkv", "parts": ("query", "key", "value")},
    "pooling": {"layer": "key_value", "parts": ("key", "value")},
}
"""Which of our layers holds several of theirs."""


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are names of one of Google's layouts."""
    known = re.compile(r"(.*/)?(Transformer/encoder(block|_norm)|resnet/(root_block|block\d+)/).*")
    return any(known.fullmatch(name) for name in tensors)


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """The model in a Google file; `document` is not used, the files stand alone.

    Raises:
        InputError: if a tensor has another rank than its name says.
    """
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), "")
    left = tuple(sorted({_branch(name, prefix) for name in tensors if not name.startswith(prefix)}))
    theirs = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if any(name.startswith("resnet/") for name in theirs):
        return _read_bit(theirs, left)
    theirs, hybrid = _one_block_each(theirs), "conv_root/kernel" in theirs
    published = hybrid or any("/MlpBlock_3/" in name for name in theirs)  # big_vision never named a module so
    big_vision = not published and "Transformer/posembed_input/pos_embedding" not in theirs
    theirs = {_original_name(name): tensor for name, tensor in theirs.items()}
    ours: Tensors = {}
    for name, tensor in _ours(theirs, RULES, hybrid=hybrid).items():
        ours[name] = _from_kernel(name, tensor)
    num_heads = _num_heads(theirs)
    for group in [name.removesuffix(".query.weight") for name in ours if name.endswith(".query.weight")]:
        join_parts(ours, group, **LAYERS["pooling" if group == "pooling" else "attention"])
    if (probe := ours.pop("MAPHead_0/probe", None)) is not None:
        ours["pooling.probe"] = probe
    _read_positions(ours)
    view = {"crop_ratio": 0.875} if big_vision else {"squash": True, "crop_ratio": 1.0}
    return Foreign(
        tensors=ours,
        num_heads=num_heads,
        feed_forward=GELU(tanh=True),
        pooling=None if "pooling.probe" in ours or len(ours["encoder.prefix"]) else Mean(),
        position=SinCos2d() if big_vision else None,
        resnet=VISION_TRANSFORMER,
        view=view | {"interpolation": "bilinear"},
        assumed=("fixed sine-cosine positions",) if "encoder.position.table" not in ours else (),
        left=left,
    )


def _branch(name: str, prefix: str) -> str:
    """What `name` is part of, in words: everything on the first branch that it does not share with `prefix`."""
    parts = name.split("/")
    branches = ("/".join(parts[:i]) + "/" for i in range(1, len(parts)))
    return next((f"everything under {branch}" for branch in branches if not prefix.startswith(branch)), name)


def _read_bit(theirs: Tensors, left: tuple[str, ...]) -> Foreign:
    ours = {name: _from_kernel(name, tensor) for name, tensor in _ours(theirs, BIT_RULES, hybrid=True).items()}
    if "head.linear.weight" in ours:
        ours["head.linear.weight"] = with_axes(ours, "head.linear.weight", 4).flatten(1)
    view = {"squash": True, "crop_ratio": 1.0, "interpolation": "bilinear"}
    return Foreign(tensors=ours, resnet=BIG_VISION, pooling=Mean(), view=view, left=left)


def _one_block_each(theirs: Tensors) -> Tensors:
    """Blocks stacked on the first axis (big_vision's scan) taken apart."""
    scanned, apart = "Transformer/encoderblock/", {}
    for name, tensor in theirs.items():
        if not name.startswith(scanned):
            apart[name] = tensor
            continue
        for i, layer in enumerate(tensor):
            apart[f"Transformer/encoderblock_{i}/{name.removeprefix(scanned)}"] = layer
    return apart


def _original_name(name: str) -> str:
    """A name as the published files have it, whichever flax wrote it."""
    match = re.match(r"(Transformer/encoderblock_\d+)/(.*)", name)
    if match is None:
        return name
    rest = match[2].replace("LayerNorm_1", "LayerNorm_2")
    rest = re.sub(r"MultiHeadDotProductAttention_\d", "MultiHeadDotProductAttention_1", rest)
    return f"{match[1]}/{re.sub(r'MlpBlock_[0-9]', 'MlpBlock_3', rest)}"


def _ours(theirs: Tensors, rules: Rules, *, hybrid: bool) -> Tensors:
    """Tensors under our names, still in their shapes."""
    renamed: Tensors = {}
    if not hybrid:
        rules = tuple(rule for rule in rules if rule[0] != "encoder.stem.patches")
    for name, tensor in theirs.items():
        module, _, word = name.rpartition("/")
        [(ours, _)] = rename({module: tensor}, tuple((right, left) for left, right in rules)).items()
        ours = re.sub(r"stages\.(\d+)\.(\d+)", lambda match: f"stages.{int(match[1]) - 1}.{int(match[2]) - 1}", ours)
        word = {"kernel": "weight", "scale": "weight", "gamma": "weight", "beta": "bias"}.get(word, word)
        renamed[f"{ours}.{word}" if ours != module else name] = tensor
    return renamed


def _from_kernel(name: str, tensor: Tensor) -> Tensor:
    """A tensor in torch's shape."""
    if name.endswith(".weight"):
        if tensor.ndim == 4 and tensor.shape[:3] == (1, 1, 1):  # group norms of old files
            return tensor.flatten()
        if tensor.ndim == 4:
            return tensor.permute(3, 2, 0, 1)
        if tensor.ndim == 3:  # heads apart: first for what leaves them, last for what enters
            return (tensor.flatten(0, 1) if name.endswith(".out.weight") else tensor.flatten(1)).T
        if tensor.ndim == 2:
            return tensor.T
    return tensor.flatten() if name.endswith(".bias") else tensor


def _num_heads(theirs: Tensors) -> int | None:
    """The number of heads, which all kernels that make queries, keys and values have apart."""
    kernels = [name for name in theirs if re.search(r"/(query|key|value)/kernel$", name)]
    for name in kernels:
        heads, bias = with_axes(theirs, name, 3).shape[1:], name.replace("/kernel", "/bias")
        if bias in theirs and theirs[bias].shape != heads:
            raise InputError(f"{bias} is {shape(theirs[bias])}, not {heads[0]} x {heads[1]}; fetch the file again")
    return theirs[kernels[0]].shape[1] if kernels else None


def _read_positions(ours: Tensors) -> None:
    """Class token and position table."""
    cls = with_axes(ours, "cls", 3) if "cls" in ours else None
    width = next((len(ours[name]) for name in ("encoder.stem.bias", "encoder.stem.patches.bias") if name in ours), 0)
    ours["encoder.prefix"] = torch.zeros(0, width) if cls is None else cls[0]
    ours.pop("cls", None)
    slots = [0] if cls is None else [1, 0]
    for name in ("pos_embedding", "Transformer/posembed_input/pos_embedding"):
        if name in ours:
            places = with_axes(ours, name, 3)[0]
            del ours[name]
            of_class_token, ours["encoder.position.table"] = split_places(name, places, prefix=slots)
            if len(of_class_token):
                ours["encoder.position.class_token"] = of_class_token


def write(classifier: Classifier) -> Tensors:
    """The tensors of a classifier as Google's code reads them: vision_transformer's names, or big_vision's.

    The former where the class token has a place of its own, as in the paper; the latter for attention pooling and
    for positions without one. A file does not say which GELU it was trained with: Google's code takes tanh.

    Raises:
        InputError: if Google's code has no such model; says what it lacks.
    """
    config, encoder = classifier.config, classifier.config.encoder
    tensors = dict(classifier.state_dict())
    if isinstance(encoder, ResNetConfig):
        refuse("BiT's code", beyond_linear(config, Mean()), instead="vitreous")
        tensors["head.linear.weight"] = tensors["head.linear.weight"][..., None, None]
        return _theirs(tensors, BIT_RULES, words=("gamma", "beta"), two_digits=True)
    assert isinstance(encoder, ViTConfig)
    refuse("Google's code", _lacks(config), instead="vitreous or timm")
    prefix, slot = tensors.pop("encoder.prefix"), tensors.pop("encoder.position.class_token", None)
    table = tensors.pop("encoder.position.table", None)
    for i in range(encoder.depth):
        _split_heads(tensors, f"encoder.blocks.{i}.attention", encoder.num_heads, **LAYERS["attention"])
        _apart(tensors, f"encoder.blocks.{i}.attention.out", encoder.num_heads, leaves=True)
    if isinstance(config.pooling, AttentionPool):
        _split_heads(tensors, "pooling", encoder.num_heads, **LAYERS["pooling"])
        _apart(tensors, "pooling.query", encoder.num_heads)
        _apart(tensors, "pooling.out", encoder.num_heads, leaves=True)
    original = slot is not None or isinstance(encoder.stem, ResNetStem)
    theirs = _theirs(tensors, RULES, words=("scale", "bias"), current_names=not original)
    if encoder.class_token:
        theirs["cls"] = prefix[None]
    if isinstance(classifier.encoder.position, SinCos2dEmbedding):
        table = None  # computed there as here
    if table is not None:
        name = "Transformer/posembed_input/pos_embedding" if original else "pos_embedding"
        theirs[name] = join_places(slot, table)
    return theirs


def forgets(config: ClassifierConfig) -> list[str]:
    """The fields that a file does not tell, as `name=value`, where they are not those of Google's code."""
    encoder = config.encoder
    stem = encoder.stem if isinstance(encoder, ViTConfig) else encoder
    forgotten = []
    if isinstance(encoder, ViTConfig) and encoder.feed_forward != GELU(tanh=True):
        forgotten.append(f"feed_forward={encoder.feed_forward}")
    if isinstance(stem, ResNetStem | ResNetConfig) and stem.epsilons != type(stem)().epsilons:  # the default is theirs
        forgotten.append(str(stem.epsilons))
    return forgotten


def _lacks(config: ClassifierConfig) -> dict[str, str]:
    """What of a model Google's code has not."""
    encoder, lacks = config.encoder, beyond_plain(config, square=True)
    assert isinstance(encoder, ViTConfig)
    if "pooling" in lacks and encoder.class_token:
        lacks["pooling"] += " beside a class token"
    hybrid = isinstance(encoder.stem, ResNetStem)  # only vision_transformer has these
    learned = isinstance(encoder.position, Learned)
    has = {
        "class_token": True,
        "feed_forward": isinstance(encoder.feed_forward, GELU),
        "stem": hybrid,
        "position": learned and not encoder.class_token if hybrid else learned or encoder.position == SinCos2d(),
        "pooling": config.pooling in ((Mean(),) if hybrid else (Mean(), AttentionPool())) and not encoder.class_token,
        "head": isinstance(config.head, LinearHead),
    }
    return {name: value for name, value in lacks.items() if not has.get(name)}


def _split_heads(tensors: Tensors, group: str, num_heads: int, *, layer: str, parts: tuple[str, ...]) -> None:
    split_parts(tensors, group, layer=layer, parts=parts)
    for part in parts:
        _apart(tensors, f"{group}.{part}", num_heads)


def _apart(tensors: Tensors, layer: str, num_heads: int, *, leaves: bool = False) -> None:
    """A layer's weight as a kernel with heads apart; `leaves` for the one that takes their output."""
    kernel = tensors[f"{layer}.weight"].T
    tensors[f"{layer}.weight"] = kernel.unflatten(0 if leaves else 1, (num_heads, -1))
    if not leaves:
        tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"].unflatten(0, (num_heads, -1))


def _theirs(
    tensors: Tensors,
    rules: Rules,
    *,
    words: tuple[str, str],
    two_digits: bool = False,
    current_names: bool = False,
) -> Tensors:
    """Tensors under Google's names and in their shapes; kernels with heads apart are so already."""
    theirs: Tensors = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        numbered = re.sub(
            r"stages\.(\d+)\.(\d+)", lambda match: f"stages.{int(match[1]) + 1}.{int(match[2]) + 1}", module
        )
        [(renamed, _)] = rename({numbered: tensor}, rules).items()
        if two_digits:
            renamed = re.sub(r"unit(\d+)", lambda match: f"unit{int(match[1]):02d}", renamed)
        if current_names and renamed.startswith("Transformer/encoderblock"):
            for original, current in CURRENT_NAMES.items():
                renamed = renamed.replace(original, current)
        if module == "pooling":
            theirs["MAPHead_0/probe"] = tensor
        elif kind == "bias":
            norm = "norm" in module
            theirs[f"{renamed}/{words[1] if norm else 'bias'}"] = tensor
        elif tensor.ndim == 1:
            theirs[f"{renamed}/{words[0]}"] = tensor
        else:
            kernel = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
            theirs[f"{renamed}/kernel"] = kernel
    return theirs
