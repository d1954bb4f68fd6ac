import math
import re
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn as to_timm_v3
from timm.models.vision_transformer import checkpoint_filter_fn as to_timm_v2
from torch import Tensor

from references import difference, epsilons, random_images, randomise
from vitreous.errors import InputError
from vitreous.position import Learned, RoPE2d
from vitreous.weights import layouts
from vitreous.weights.mapping import Tensors
from vitreous.weights.product import Product, load_product

SHAPE: dict[str, Any] = {"embed_dim": 64, "num_heads": 1, "depth": 4, "num_classes": 0}
SMALL: dict[str, Any] = SHAPE | {"img_size": 28, "patch_size": 7}
IMAGES = random_images(2, 3, 28, 28)


def draw(*shape: int) -> Tensor:
    return random_images(*shape, seed=7)


@pytest.fixture
def load(tmp_path):
    """The product in a file of torch's, which is read without running anything in it."""

    def load(found: Any) -> Product:
        torch.save(found, tmp_path / "weights.pth")
        return load_product(tmp_path, weights="weights.pth")

    return load


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def wrapped(tensors: Tensors) -> Tensors:
    """Blocks in chunks of two, each of them and each block wrapped by FSDP, as DINOv2's training has them."""
    wrapper, found = "_fsdp_wrapped_module.", {}
    for name, tensor in tensors.items():
        block = re.match(r"blocks\.(\d+)\.(.*)", name)
        chunked = block and f"blocks.{int(block[1]) // 2}.{wrapper}{block[1]}.{wrapper}{block[2]}"
        found[wrapper + (chunked or name)] = tensor
    return found


# ------------------------------------------------------------------------------------------------------------- DINO


@pytest.mark.parametrize("module", ["module.", ""])
@torch.no_grad()
def test_the_teacher_of_a_training_of_dino_is_read(module, load):
    theirs = randomise(timm.create_model("vit_small_patch16_224", **SMALL))
    head = {"head.mlp.0.weight": draw(8, 64), "head.last_layer.weight_g": draw(8, 1)}
    student = {name: tensor + 1 for name, tensor in theirs.state_dict().items()}
    found = load(
        {
            "student": with_prefix("module.", with_prefix("backbone.", student)),
            "teacher": with_prefix(module, with_prefix("backbone.", theirs.state_dict()) | head),
            "epoch": 3,
        }
    )
    assert difference(found.classifier.features(IMAGES), theirs(IMAGES)) < 1e-5
    assert found.extra["headless"]
    assert found.extra["left"] == "left behind: the heads of its training"
    assert found.extra["assumed"].endswith("assumed 1 heads, ImageNet mean and deviation, bicubic resize")
    assert found.view.mean == (0.485, 0.456, 0.406)


def test_dino_resizes_positions_for_a_tenth_of_a_patch_more(load):
    theirs = timm.create_model("vit_small_patch16_224", **SMALL)
    found = load({"teacher": with_prefix("backbone.", theirs.state_dict())})
    assert found.classifier.config.encoder.position == Learned(resampling="offset_bicubic")
    assert "left" not in found.extra


# ----------------------------------------------------------------------------------------------------------- DINOv2

V2 = {
    "DINOv2": "vit_small_patch14_dinov2",
    "with registers": "vit_small_patch14_reg4_dinov2",
    "with a SwiGLU": "vit_giant_patch14_dinov2",
    "with both": "vit_giant_patch14_reg4_dinov2",
}


def dinov2(name: str) -> tuple[Tensors, Any]:
    """A file of DINOv2's, and timm's model of it, as timm reads such files."""
    theirs: Any = randomise(timm.create_model(name, **SMALL, mlp_ratio=4))
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        tensors["pos_embed"] = torch.cat([draw(1, 1, 64), tensors["pos_embed"]], dim=1)
    if "giant" in name:
        tensors = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in tensors.items()}
    tensors["mask_token"] = draw(1, 64)
    theirs.load_state_dict(to_timm_v2(dict(tensors), theirs))
    return tensors, theirs


@pytest.mark.parametrize("name", V2.values(), ids=V2)
@torch.no_grad()
def test_a_published_file_of_dinov2_is_read(name, load):
    tensors, theirs = dinov2(name)
    found = load(tensors)
    assert difference(found.classifier.features(IMAGES), theirs(IMAGES)) < 1e-5
    assert epsilons(found.classifier) == epsilons(theirs)
    assert found.extra["left"] == "left behind: the mask token"
    assert found.extra["headless"]
    registered = "register_tokens" in tensors
    assert found.classifier.config.encoder.num_registers == 4 * registered
    resampling = "antialiased_bicubic" if registered else "offset_bicubic"
    assert found.classifier.config.encoder.position == Learned(resampling=resampling)


@pytest.mark.parametrize("name", V2.values(), ids=V2)
@torch.no_grad()
def test_a_training_of_dinov2_is_read_whatever_wraps_its_blocks(name, load):
    tensors, theirs = dinov2(name)
    head = {"dino_head.last_layer.weight_v": draw(8, 8)}
    found = load({"teacher": with_prefix("backbone.", wrapped(tensors)) | head})
    assert difference(found.classifier.features(IMAGES), theirs(IMAGES)) < 1e-5
    assert found.extra["left"] == "left behind: the heads of its training, the mask token"

    student = {name: tensor + 1 for name, tensor in tensors.items()}
    both = with_prefix("student.backbone.", student) | with_prefix("teacher.backbone.", wrapped(tensors))
    found = load({"model": both | with_prefix("teacher.", head)})
    assert difference(found.classifier.features(IMAGES), theirs(IMAGES)) < 1e-5
    assert found.extra["left"].startswith("left behind: the student, the heads")


@torch.no_grad()
def test_the_giant_has_24_heads():
    theirs = randomise(timm.create_model("vit_giant_patch14_dinov2", depth=1, img_size=28))
    foreign = layouts.read(dict(theirs.state_dict()) | {"mask_token": draw(1, 1536)}, {})
    assert difference(layouts.classifier_of(foreign).features(IMAGES), theirs(IMAGES)) < 1e-5


# ----------------------------------------------------------------------------------------------------------- DINOv3

V3 = {
    "DINOv3": ("vit_small_patch16_dinov3_qkvb", {}),
    "without biases": ("vit_small_patch16_dinov3", {}),
    "with a SwiGLU": ("vit_huge_plus_patch16_dinov3_qkvb", {"mlp_ratio": 2}),
}
WIDE = random_images(2, 3, 64, 96)


def dinov3(name: str, arguments: dict[str, Any], *, keys: float) -> tuple[Tensors, Any]:
    """A file of DINOv3's whose mask says `keys` of the bias of keys, and timm's model of it."""
    theirs: Any = randomise(timm.create_model(name, **SHAPE, **arguments, dynamic_img_size=True))
    tensors: Tensors = {}
    gated = {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"} if "huge" in name else {}
    for timms, tensor in theirs.state_dict().items():
        named = timms.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        named = named.replace("reg_token", "storage_tokens")
        for here, there in gated.items():
            named = named.replace(f"mlp.{here}.", f"mlp.{there}.")
        tensors[named] = tensor.clone()
    for block in [n.removesuffix("q_bias") for n in tensors if n.endswith("q_bias")]:
        q, v = tensors.pop(f"{block}q_bias"), tensors.pop(f"{block}v_bias")
        tensors[f"{block}qkv.bias"] = torch.cat([q, draw(64), v])
        tensors[f"{block}qkv.bias_mask"] = torch.cat([torch.ones(64), torch.full((64,), keys), torch.ones(64)])
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("k_bias")}
    tensors["rope_embed.periods"] = (100 ** (torch.arange(16) / 16)).bfloat16()
    tensors |= {"mask_token": draw(1, 64), "local_cls_norm.weight": draw(64), "local_cls_norm.bias": draw(64)}
    theirs.load_state_dict(to_timm_v3(dict(tensors), theirs))
    return tensors, theirs


@pytest.mark.parametrize(("name", "arguments"), V3.values(), ids=V3)
@pytest.mark.parametrize("keys", [0.0, math.nan])
@torch.no_grad()
def test_a_file_of_dinov3_is_read(name, arguments, keys, load):
    tensors, theirs = dinov3(name, arguments, keys=keys)
    found = load(tensors)
    tokens, expected = found.classifier.encoder(WIDE), theirs.forward_features(WIDE)
    assert difference(torch.cat([tokens.prefix, tokens.patches], dim=1), expected) < 1e-5
    assert epsilons(found.classifier) == epsilons(theirs)
    assert found.extra["left"] == ("left behind: the mask token, local_cls_norm.weight, local_cls_norm.bias")
    encoder = found.classifier.config.encoder
    assert (encoder.position, encoder.num_heads, encoder.norm_eps) == (RoPE2d(base=100.0), 1, 1e-5)
    assert found.view.squash


def test_the_heads_of_dinov3_are_told_by_its_periods():
    theirs = timm.create_model("vit_small_patch16_dinov3", depth=1, num_classes=0)
    tensors = {
        n.replace("gamma_", "ls").replace("reg_token", "storage_tokens"): t for n, t in theirs.state_dict().items()
    }
    tensors = {re.sub(r"\.ls(\d)$", r".ls\1.gamma", name): tensor for name, tensor in tensors.items()}
    tensors["rope_embed.periods"] = 100 ** (torch.arange(8) / 8)
    assert layouts.classifier_of(layouts.read(tensors, {})).config.encoder.num_heads == 384 // (4 * 8)


def test_other_rotary_periods_are_refused(load):
    tensors, _ = dinov3(*V3["DINOv3"], keys=0.0)
    tensors["rope_embed.periods"] = 1000 ** (torch.arange(16) / 16)
    with pytest.raises(InputError, match=r"rope_embed\.periods are not those of base 100"):
        load(tensors)
