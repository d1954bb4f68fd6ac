import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch

import google_reference as reference
from google_reference import Tree
from references import randomise, same_tensors, tiny
from vitreous.block import Parallel
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, SwiGLU
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, ClassToken, Mean
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d, SinCos2dEmbedding
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.weights import google, layouts
from vitreous.weights.mapping import Tensors
from vitreous.weights.product import Product, load_product
from vitreous.weights.timm_tensors import to_timm

SHAPE: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "patch": 8, "image": 32, "classes": 5}
Forward = Callable[[Tree, np.ndarray], np.ndarray]


def original(**changes):
    return reference.vit_jax_tree(**(SHAPE | changes)), reference.vit_jax_forward


def big_vision(**changes):
    return reference.big_vision_tree(**(SHAPE | changes)), reference.big_vision_forward


def bit(*layers: int):
    return reference.bit_tree(layers=layers, classes=5), reference.bit_forward


FILES: dict[str, tuple[Tree, Forward]] = {
    "original": original(),
    "original, pre-trained": original(representation=24),
    "original, as flax names it now": original(current_names=True),
    "original, of training": original(prefix="opt/target/"),
    "original, mean": original(class_token=False),
    "hybrid": original(hybrid_layers=(1, 2), patch=2, image=64),
    "hybrid, three stages": original(patch=1, hybrid_layers=(1, 1, 1), image=64),
    "hybrid of old": original(patch=1, hybrid_layers=(1, 1), old_group_norm=True, prefix="opt/target/"),
    "hybrid, root alone": original(hybrid_layers=(), patch=2),
    "hybrid, mean": original(patch=1, hybrid_layers=(1,), class_token=False),
    "big_vision, mean": big_vision(),
    "big_vision, attention pooling": big_vision(pool="map"),
    "big_vision, class token": big_vision(pool="tok"),
    "big_vision, scanned": big_vision(pool="map", scanned=True),
    "big_vision, bfloat16": big_vision(pool="map", bfloat16=True),
    "big_vision, scanned bfloat16": big_vision(pool="tok", scanned=True, bfloat16=True),
    "big_vision, bare": big_vision(prefix=""),
    "big_vision, one of two towers": big_vision(pool="map", prefix="params/img/"),
    "SigLIP": big_vision(pool="map", classes=None, prefix="params/img/"),
    "BiT": bit(1, 2, 1),
    "BiT, one stage": bit(2),
}


@pytest.fixture
def load(tmp_path):
    """The product in a file of Google's."""

    def load(tree: Tree) -> Product:
        reference.save_npz(tmp_path / "model.npz", tree)
        return load_product(tmp_path, weights="model.npz")

    return load


def images(classifier: Classifier) -> np.ndarray:
    encoder = classifier.config.encoder
    shape = (33, 40) if isinstance(encoder, ResNetConfig) else encoder.image_shape
    return np.random.RandomState(1).standard_normal((2, *shape, 3))


@torch.no_grad()
def difference(classifier: Classifier, tree: Tree, forward: Forward, *, headless: bool = False) -> float:
    """How far the classifier, in float64, is from the reference, as a fraction of its largest logit."""
    pixels, classifier = images(classifier), classifier.double()
    expected, answer = forward(tree, pixels), classifier.features if headless else classifier
    found = answer(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return np.abs(found.numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", FILES)
def test_a_file_computes_what_googles_code_computes(name, load):
    tree, forward = FILES[name]
    product = load(tree)
    headless = name == "SigLIP"
    assert product.extra == ({"headless": True} if headless else {})
    assert difference(product.classifier, tree, forward, headless=headless) < 1e-12


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_reads_as_the_same_model_bit_for_bit(name, load):
    classifier = load(FILES[name][0]).classifier
    again = load(arrays(google.write(classifier))).classifier
    assert again.config == classifier.config
    assert same_tensors(again.state_dict(), classifier.state_dict())


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("original, mean", "SigLIP")])
def test_what_is_written_computes_the_same_in_googles_code(name, load):
    tree, forward = FILES[name]
    classifier = load(tree).classifier
    assert difference(classifier, arrays(google.write(classifier)), forward) < 1e-12


@pytest.mark.parametrize("name", ["original", "original, pre-trained", "hybrid", "hybrid, mean", "BiT"])
def test_what_is_written_has_the_names_and_shapes_that_were_read(name, load):
    tree, _ = FILES[name]
    written = arrays(google.write(load(tree).classifier))
    assert {n: a.shape for n, a in written.items()} == {n: a.shape for n, a in tree.items()}
    assert all((written[n] == tree[n]).all() for n in tree)


def test_the_mean_of_the_papers_code_is_written_for_big_vision(load):
    classifier = load(FILES["original, mean"][0]).classifier
    assert difference(classifier, arrays(google.write(classifier)), reference.big_vision_forward) < 1e-12


def arrays(tensors: Tensors) -> Tree:
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def test_the_text_tower_beside_an_image_tower_stays_behind(load):
    image, forward = big_vision(pool="map", classes=None, prefix="params/img/")
    text, _ = big_vision(classes=3, prefix="params/txt/Encoder_0/")
    product = load(image | text | {"params/t": np.ones(1), "params/b": np.zeros(1)})
    assert product.extra == {"headless": True, "left": "left behind: everything under params/txt/, params/b, params/t"}
    assert difference(product.classifier, image, forward, headless=True) < 1e-12


def test_the_optimiser_beside_a_model_stays_behind(load):
    tree, forward = FILES["original, of training"]
    product = load(tree | {"opt/state/step": np.int64(7), "epoch": np.float32(1)})
    assert product.extra == {"left": "left behind: epoch, everything under opt/state/"}
    assert difference(product.classifier, tree, forward) < 1e-12


@pytest.mark.parametrize("pool", ["gap", "tok"])
def test_big_visions_fixed_positions_are_assumed_where_the_file_has_none(pool, load):
    tree, forward = big_vision(pool=pool, prefix="")
    grid = SHAPE["image"] // SHAPE["patch"]
    fixed = SinCos2dEmbedding(SinCos2d(), SHAPE["width"]).vectors((grid, grid), torch.device("cpu"))
    del tree["pos_embedding"]
    product = load(tree)
    assert product.extra["assumed"] == "no config.json says otherwise: assumed fixed sine-cosine positions"
    encoder = dataclasses.replace(product.classifier.config.encoder, image_size=32)
    assert encoder.position == SinCos2d()
    classifier = dataclasses.replace(product.classifier.config, encoder=encoder).build()
    classifier.load_state_dict(product.classifier.state_dict())
    tree["pos_embedding"] = fixed.reshape(1, -1, SHAPE["width"]).numpy()
    assert difference(classifier, tree, forward) < 1e-6  # the sines are float32
    written = google.write(classifier)
    assert "pos_embedding" not in written
    assert same_tensors(layouts.classifier_of(layouts.read(written, {})).state_dict(), product.classifier.state_dict())


def test_the_papers_own_files_always_have_positions(load):
    for name in ("original", "hybrid"):
        tree = dict(FILES[name][0])
        del tree["Transformer/posembed_input/pos_embedding"]
        with pytest.raises(InputError, match="no positions"):
            load(tree)


def test_each_codes_own_preparation_of_images_is_taken(load):
    paper, vision = load(FILES["original"][0]).view, load(FILES["big_vision, mean"][0]).view
    assert (paper.squash, paper.crop_ratio, paper.interpolation) == (True, 1.0, "bilinear")
    assert (vision.squash, vision.crop_ratio, vision.interpolation) == (False, 0.875, "bilinear")
    assert paper.mean == vision.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("kind", ["kernel", "bias"])
def test_a_missing_part_of_attention_is_named(part, kind, load):
    tree = dict(FILES["original"][0])
    del tree[f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/{part}/{kind}"]
    with pytest.raises(InputError, match=rf"encoder\.blocks\.1\.attention.*{part}") as error:
        load(tree)
    assert "\n" not in str(error.value)


def test_an_old_big_vision_file_has_the_place_of_the_class_token_on_top(load):
    tree = dict(FILES["original"][0])
    expected = load(dict(tree)).classifier.state_dict()
    for name in list(tree):  # flax's names of today
        renamed = name.replace("LayerNorm_2", "LayerNorm_1").replace("MlpBlock_3", "MlpBlock_0")
        tree[renamed.replace("DotProductAttention_1", "DotProductAttention_0")] = tree.pop(name)
    tree["pos_embedding"] = tree.pop("Transformer/posembed_input/pos_embedding")
    assert same_tensors(load(tree).classifier.state_dict(), expected)


def test_heads_that_were_swapped_with_channels_are_noticed(load):
    tree = dict(FILES["original"][0])
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias"
    tree[name] = tree[name].T
    with pytest.raises(InputError, match=r"key/bias is 8 x 4, not 4 x 8"):
        load(tree)


def test_positions_of_an_oblong_image_are_refused(load):
    tree = dict(FILES["original"][0])
    tree["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 13, 32), np.float32)
    with pytest.raises(
        InputError, match=r"pos_embedding has 13 places, no square grid of patches after 1 or 0 of other tokens"
    ):
        load(tree)


def test_a_file_cut_short_is_said_to_be_damaged(tmp_path):
    path = tmp_path / "model.npz"
    reference.save_npz(path, FILES["original"][0])
    data = path.read_bytes()
    for end in (len(data) // 2, len(data) - 10, 3, 0):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match=r"model\.npz is damaged or incomplete") as error:
            load_product(tmp_path, weights="model.npz")
        assert "\n" not in str(error.value)


def test_a_damaged_number_is_noticed(tmp_path):
    path = tmp_path / "model.npz"
    reference.save_npz(path, FILES["original"][0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.npz is damaged or incomplete"):
        load_product(tmp_path, weights="model.npz")


def test_pickled_objects_are_not_opened(tmp_path):
    tree = FILES["original"][0] | {"cls": np.array([{"a": 1}], dtype=object)}
    with open(tmp_path / "model.npz", "wb") as file:
        np.savez(file, **tree)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="pickled objects that would run code"):
        load_product(tmp_path, weights="model.npz")


PAPERS = tiny(feed_forward=GELU(tanh=True))
MEANS = dataclasses.replace(PAPERS, class_token=False)


@pytest.mark.parametrize(
    ("encoder", "parts", "lack"),
    [
        (PAPERS, {"pooling": Mean()}, "pooling=Mean"),
        (PAPERS, {"pooling": AttentionPool()}, "pooling=AttentionPool"),
        (dataclasses.replace(PAPERS, num_registers=2), {}, "num_registers=2"),
        (dataclasses.replace(PAPERS, layer_scale=0.1), {}, "layer_scale=0.1"),
        (dataclasses.replace(PAPERS, feed_forward=SwiGLU()), {}, "feed_forward=SwiGLU"),
        (dataclasses.replace(PAPERS, block=Parallel()), {}, "block=Parallel"),
        (dataclasses.replace(PAPERS, position=RoPE2d()), {}, r"position=RoPE2d\(base=100\.0\)"),
        (dataclasses.replace(PAPERS, position=NoPosition()), {}, "position=NoPosition"),
        (dataclasses.replace(PAPERS, position=SinCos2d(reach_temperature=False)), {}, "position=SinCos2d"),
        (dataclasses.replace(PAPERS, norm_eps=1e-5), {}, "norm_eps=1e-05"),
        (dataclasses.replace(PAPERS, qkv_bias=False), {}, "qkv_bias=False"),
        (dataclasses.replace(PAPERS, image_size=(32, 48)), {}, r"image_size=\(32, 48\)"),
        (dataclasses.replace(PAPERS, stem=ResNetStem(units=(1, 1)), position=SinCos2d()), {}, "position=SinCos2d"),
        (dataclasses.replace(MEANS, stem=ResNetStem(units=(1, 1))), {"pooling": AttentionPool()}, "pooling=Attention"),
    ],
)
def test_what_googles_code_lacks_is_not_written(encoder, parts, lack):
    classifier = ClassifierConfig(encoder=encoder, num_classes=3, **parts).build()
    with pytest.raises(InputError, match=f"Google's code has no model with .*{lack}.*; write vitreous or timm"):
        google.write(classifier)


@pytest.mark.parametrize("head", [LinearHead(representation=8)])
def test_a_resnet_with_more_than_a_linear_head_is_not_written(head):
    encoder = ResNetConfig(units=(1,), image_size=32)
    with pytest.raises(InputError, match=r"BiT's code has no model with head=.*; write vitreous"):
        google.write(ClassifierConfig(encoder=encoder, pooling=Mean(), head=head, num_classes=3).build())


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("original", {"img_size": 32, "patch_size": 8}),
        (
            "big_vision, attention pooling",
            {"img_size": 32, "patch_size": 8, "global_pool": "map", "class_token": False},
        ),
        ("big_vision, mean", {"img_size": 32, "patch_size": 8, "global_pool": "avg", "class_token": False}),
    ],
)
def test_timms_own_reader_takes_the_same_tensors_from_what_is_written(name, architecture, load, tmp_path):
    classifier = load(FILES[name][0]).classifier
    reference.save_npz(tmp_path / "written.npz", arrays(google.write(classifier)))
    theirs: Any = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=1.5,
        num_classes=5,
        fc_norm=False,
        **architecture,
    )
    theirs.load_pretrained(str(tmp_path / "written.npz"))
    assert same_tensors(theirs.state_dict(), to_timm(classifier))


def test_timms_own_reader_takes_a_hybrid_that_is_written(tmp_path):
    encoder = tiny(stem=ResNetStem(units=(2, 2, 2, 2)), patch_size=32, image_size=64, num_heads=4)
    classifier = randomise(ClassifierConfig(encoder=encoder, num_classes=5).build())
    reference.save_npz(tmp_path / "written.npz", arrays(google.write(classifier)))
    shape = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    theirs: Any = timm.create_model("vit_small_r26_s32_224", num_classes=5, **shape)
    theirs.load_pretrained(str(tmp_path / "written.npz"))
    assert same_tensors(theirs.state_dict(), to_timm(classifier))


def test_timms_own_reader_takes_a_resnet_that_is_written(tmp_path):
    config = ClassifierConfig(encoder=ResNetConfig(image_size=32), pooling=Mean(), num_classes=1000)
    classifier = randomise(config.build())
    reference.save_npz(tmp_path / "written.npz", arrays(google.write(classifier)))
    theirs: Any = timm.create_model("resnetv2_50x1_bit")
    theirs.load_pretrained(str(tmp_path / "written.npz"))
    assert same_tensors(theirs.state_dict(), to_timm(classifier))


def test_a_file_of_a_model_pools_as_its_tensors_say(load):
    poolings = {name: type(load(FILES[name][0]).classifier.config.pooling) for name in FILES}
    assert poolings["original"] is poolings["big_vision, class token"] is ClassToken
    assert poolings["original, mean"] is poolings["big_vision, mean"] is poolings["BiT"] is Mean
    assert poolings["SigLIP"] is AttentionPool
    assert load(FILES["big_vision, class token"][0]).classifier.config.encoder.position == Learned(
        class_token_slot=False
    )
