import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from references import random_images, randomise, read, same_tensors, tiny
from vitreous.block import Axial, BranchNorm, Parallel, PreNorm
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.head import DistilledHead, LinearHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, ClassToken, Mean
from vitreous.position import EveryLayer, Learned, Learned2d, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeKeys, RelativeMLP
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.tokens import Encoder
from vitreous.variants import encoder, vit
from vitreous.weights import layouts
from vitreous.weights.infer import Foreign, infer
from vitreous.weights.layouts import classifier_of
from vitreous.weights.timm_tensors import to_timm

ONE_HEAD = tiny(num_heads=1)  # as a width of 32 is taken to have, where no shape tells
BARE = dataclasses.replace(ONE_HEAD, class_token=False)


def of(encoder=ONE_HEAD, **changes):
    return dataclasses.replace(encoder, **changes)


def config(encoder: Encoder = ONE_HEAD, **parts):
    return ClassifierConfig(encoder=encoder, num_classes=7, **parts)


TOLD_BY_SHAPES = {
    "as the paper's": config(),
    "registers": config(of(num_registers=3)),
    "no place for the class token": config(of(position=Learned(class_token_slot=False))),
    "layer scale": config(of(layer_scale=1e-5)),
    "no bias of queries, keys and values": config(of(qkv_bias=False)),
    "normed queries and keys": config(tiny(qk_norm=True)),
    "RMS norms": config(of(rms_norm=True)),
    "SwiGLU": config(of(feed_forward=SwiGLU())),
    "a norm before the blocks": config(of(stem_norm=True, stem=Patchify(bias=False))),
    "no bias of the stem": config(of(stem=Patchify(bias=False))),
    "no norm at the end": config(of(final_norm=False)),
    "parallel": config(of(block=Parallel())),
    "parallel, as ViT-22B": config(tiny(block=Parallel(), qk_norm=True, qkv_bias=False, rms_norm=True)),
    "parallel with layer scale": config(of(block=Parallel(), layer_scale=1e-5)),
    "axial": config(of(BARE, block=Axial()), pooling=Mean()),
    "an oblong image": config(of(image_size=(32, 48))),
    "one channel, another size": config(of(channels=1, image_size=64)),
    "rows and columns": config(of(position=Learned2d())),
    "rows and columns of patches alone": config(of(position=Learned2d(class_token_slot=False))),
    "a table in every layer": config(of(position=EveryLayer())),
    "a table for all layers": config(of(position=EveryLayer(shared=True))),
    "rows and columns in every layer": config(of(position=EveryLayer(kind=Learned2d(class_token_slot=False)))),
    "relative bias": config(tiny(position=RelativeBias())),
    "relative bias without a class token": config(tiny(position=RelativeBias(), class_token=False), pooling=Mean()),
    "shared relative bias": config(tiny(position=RelativeBias(shared=True), image_size=(32, 48))),
    "relative keys": config(tiny(position=RelativeKeys())),
    "shared relative keys": config(tiny(position=RelativeKeys(shared=True))),
    "a network of offsets": config(tiny(position=RelativeMLP(hidden=8), image_size=224)),
    "a shared network of offsets": config(tiny(position=RelativeMLP(shared=True), image_size=224)),
    "a hybrid": config(of(stem=ResNetStem(units=(1, 2)))),
    "a hybrid of the root alone": config(of(stem=ResNetStem(units=()))),
    "a ResNet": config(ResNetConfig(units=(1, 2)), pooling=Mean()),
    "a wide ResNet": config(ResNetConfig(units=(1, 1), multiplier=2, channels=1), pooling=Mean()),
    "mean": config(BARE, pooling=Mean()),
    "normed mean": config(of(final_norm=False), pooling=Mean(norm=True)),
    "attention pooling": config(BARE, pooling=AttentionPool()),
    "attention pooling beside a class token": config(pooling=AttentionPool()),
    "representation": config(head=LinearHead(representation=9)),
    "distilled": config(of(num_registers=1), pooling=ClassAndDistillation(), head=DistilledHead()),
}


@pytest.mark.parametrize("wanted", TOLD_BY_SHAPES.values(), ids=TOLD_BY_SHAPES)
def test_a_bare_state_dict_of_ours_is_recognised_from_its_shapes(wanted):
    classifier = randomise(wanted.build())
    found = read(classifier.state_dict())
    assert found.config == wanted
    assert same_tensors(found.state_dict(), classifier.state_dict())


CANNOT_TELL = {
    "heads": (of(num_heads=2), {}),
    "which GELU": (of(feed_forward=GELU(tanh=True)), {"feed_forward": GELU(tanh=True)}),
    "GELU or QuickGELU": (of(feed_forward=QuickGELU()), {"feed_forward": QuickGELU()}),
    "where the norms stand": (of(block=BranchNorm()), {"branch_norm": True}),
    "epsilon": (of(norm_eps=1e-12), {"norm_eps": 1e-12}),
    "whether the first token is a register": (of(BARE, num_registers=2), {"class_token": False, "pooling": Mean()}),
    "how positions are resized": (of(position=Learned(resampling="bicubic")), {"resampling": "bicubic"}),
    "positions without tensors": (of(position=RoPE2d(), image_size=224), {"position": RoPE2d()}),
    "no positions": (of(position=NoPosition(), image_size=64), {"position": NoPosition(), "image_size": 64}),
    "an oblong image": (
        of(position=SinCos2d(), image_size=(32, 64)),
        {"position": SinCos2d(), "image_size": (32, 64)},
    ),
}


@pytest.mark.parametrize(("encoder", "known"), CANNOT_TELL.values(), ids=CANNOT_TELL)
def test_what_shapes_cannot_tell_is_taken_from_the_layout(encoder, known):
    pooling = ClassToken() if encoder.class_token else Mean()
    wanted = config(encoder, pooling=pooling)
    tensors = wanted.build().state_dict()
    foreign = Foreign(tensors=tensors, num_heads=encoder.num_heads, **known)
    assert infer(foreign) == wanted
    if encoder.num_heads != 1:
        assert infer(dataclasses.replace(foreign, num_heads=None)) == dataclasses.replace(
            wanted, encoder=of(encoder, num_heads=1)
        )


def test_mean_pooling_and_a_class_token_go_together_where_the_layout_says_so():
    tensors = config(pooling=Mean()).build().state_dict()
    assert infer(Foreign(tensors=tensors)).pooling == ClassToken()
    assert infer(Foreign(tensors=tensors, pooling=Mean())).pooling == Mean()


@pytest.mark.parametrize("name", ["Ti/16", "S/32", "B/16", "L/14", "So400m/14", "H/14", "g/14", "G/14"])
def test_a_published_width_has_the_published_number_of_heads(name):
    wanted = ClassifierConfig(encoder=vit(name, depth=1))
    with torch.device("meta"):
        tensors = wanted.build().state_dict()
    assert infer(Foreign(tensors=tensors)) == wanted


@pytest.mark.parametrize("name", ["R50+B/16", "R26+S/32", "R+Ti/16", "R50x1", "R101x3"])
def test_a_published_hybrid_or_resnet_is_recognised(name):
    shape = encoder(name)
    wanted = ClassifierConfig(encoder=shape, pooling=Mean() if isinstance(shape, ResNetConfig) else ClassToken())
    with torch.device("meta"):
        tensors = wanted.build().state_dict()
    assert infer(layouts.read(tensors, {})) == wanted


def test_weights_without_a_head_are_an_encoder_with_a_zero_head():
    classifier = randomise(config().build())
    ours = read({name: t for name, t in classifier.state_dict().items() if not name.startswith("head.")})
    images = random_images(1, 3, 32, 32)
    assert torch.equal(ours.features(images), classifier.features(images))
    assert ours(images).tolist() == [[0.0]]


def test_a_zero_head_fits_behind_a_representation():
    classifier = config(head=LinearHead(representation=9)).build()
    tensors = {name: t for name, t in classifier.state_dict().items() if not name.startswith("head.linear.")}
    assert read(tensors)(random_images(1, 3, 32, 32)).tolist() == [[0.0]]


def test_half_of_a_head_is_refused():
    tensors = config().build().state_dict()
    del tensors["head.linear.weight"]
    with pytest.raises(InputError, match=r"1 missing \(head\.linear\.weight\)"):
        read(tensors)
    distilled = config(of(num_registers=1), pooling=ClassAndDistillation(), head=DistilledHead()).build()
    tensors = {name: t for name, t in distilled.state_dict().items() if not name.startswith("head.linear.")}
    with pytest.raises(InputError, match=r"2 missing \(head\.linear\.weight, head\.linear\.bias\); choose"):
        read(tensors)


def test_a_classifier_of_tensors_takes_them_as_its_own_and_is_ready_to_answer():
    tensors = dict(config().build().state_dict())
    found = classifier_of(Foreign(tensors=tensors))
    assert found.state_dict()["encoder.norm.weight"].data_ptr() == tensors["encoder.norm.weight"].data_ptr()
    assert not found.training


@pytest.mark.parametrize("position", [RoPE2d(), SinCos2d(), NoPosition()])
def test_weights_without_positions_need_a_config(position):
    with pytest.raises(InputError, match=r"no positions.*no config\.json"):
        read(config(of(position=position)).build().state_dict())


def test_tensors_of_something_else_are_refused():
    with pytest.raises(InputError, match=r"lack encoder\.prefix, which every ViT has; they are encoder\.stem\.weight"):
        infer(Foreign(tensors={"encoder.stem.weight": torch.zeros(1, 1, 1, 1)}))
    with pytest.raises(InputError, match=r"lack encoder\.blocks\.0\.mlp\.up\.weight"):
        infer(Foreign(tensors={"encoder.stem.weight": torch.zeros(1, 1, 1, 1), "encoder.prefix": torch.zeros(1, 1)}))
    with pytest.raises(InputError, match=r"encoder\.prefix is 1, but has 2 axes"):
        infer(Foreign(tensors={"encoder.stem.weight": torch.zeros(1, 1, 1, 1), "encoder.prefix": torch.zeros(1)}))


@pytest.mark.parametrize("number", ["99999999", "9" * 30, "3"])
def test_a_block_far_behind_the_others_is_refused_at_once(number):
    tensors = config().build().state_dict()
    tensors[f"encoder.blocks.{number}.norm1.weight"] = tensors["encoder.norm.weight"]
    with pytest.raises(InputError, match=rf"these tensors have none of block 2, but of block {number}"):
        read(tensors)


def test_a_block_without_a_number_is_refused():
    tensors = config().build().state_dict()
    tensors["encoder.blocks.one.norm1.weight"] = tensors["encoder.norm.weight"]
    with pytest.raises(InputError, match=r"missing or misshapen \(invalid literal .*'one'\)"):
        read(tensors)


def test_heads_that_do_not_divide_the_width_are_a_misshapen_stem():
    tensors = config(tiny(width=32)).build().state_dict()
    with pytest.raises(InputError, match=r"encoder\.stem\.weight is 32 x 3 x 8 x 8, but 5 heads need a width"):
        infer(Foreign(tensors=tensors, num_heads=5))


@pytest.fixture(scope="module")
def real(shared):
    return load_file(shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k" / "model.safetensors")


def test_the_real_vit_tiny_is_recognised_from_its_shapes(real):
    assert read(real).config == ClassifierConfig(
        encoder=vit("Ti/16", position=Learned(resampling="antialiased_bicubic"))
    )


@pytest.mark.parametrize(
    "encoder",
    [
        ONE_HEAD,
        of(num_registers=3),
        of(num_registers=3, class_token=False),
        of(position=Learned(class_token_slot=False), layer_scale=1e-5),
        of(channels=1, image_size=64),
        of(block=PreNorm(), qkv_bias=False),
    ],
)
@pytest.mark.parametrize("pooling", [Mean(), AttentionPool()])
def test_a_config_is_inferred_from_the_shapes_of_timms_tensors(encoder, pooling):
    wanted = config(encoder, pooling=pooling)
    document = {"global_pool": "avg", "architecture": "vit_tiny_patch16_224"}
    if isinstance(pooling, AttentionPool):
        document["global_pool"] = "map"
    found = read(to_timm(randomise(wanted.build())), document).config
    slot = encoder.position.class_token_slot or not encoder.class_token
    position = Learned(class_token_slot=slot, resampling="antialiased_bicubic")
    assert found == dataclasses.replace(wanted, encoder=of(encoder, position=position))
