import dataclasses

import pytest
import torch
from torch.testing import assert_close

from references import random_images, randomise, tiny
from vitreous.block import BranchNorm, Parallel
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import EveryLayer, Learned, Learned2d, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeKeys, RelativeMLP
from vitreous.resampling import resample
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.weights import Product, fit_encoder

IMAGES = random_images(2, 3, 32, 32)


def trained(**changes) -> Product:
    pooling = changes.pop("pooling", Mean())
    config = ClassifierConfig(
        encoder=tiny(**changes), pooling=pooling, head=LinearHead(representation=16), num_classes=9
    )
    return Product(randomise(config.build()), EvalView(image_size=32))


def target(**changes) -> ClassifierConfig:
    pooling = changes.pop("pooling", Mean())
    return ClassifierConfig(encoder=tiny(**changes), pooling=pooling, num_classes=5)


@pytest.mark.parametrize("position", [Learned(), SinCos2d(), RoPE2d()])
def test_the_encoder_is_the_trained_one_and_the_head_is_zero(position):
    source = trained(position=position, num_registers=2)
    fitted = fit_encoder(target(position=position, num_registers=2), source).eval()
    assert torch.equal(fitted.features(IMAGES), source.classifier.features(IMAGES))
    assert torch.equal(fitted(IMAGES), torch.zeros(2, 5))


def test_the_source_is_not_shared():
    source = trained()
    fitted = fit_encoder(target(), source)
    fitted.encoder.get_parameter("norm.weight").data.zero_()
    assert source.classifier.encoder.get_parameter("norm.weight").abs().sum() > 0


def test_positions_are_resampled_to_the_new_grid():
    source = trained()
    fitted = fit_encoder(target(image_size=48), source)
    expected = resample(source.classifier.encoder.get_parameter("position.table"), (6, 6))
    assert torch.equal(fitted.encoder.get_parameter("position.table"), expected)


ABSOLUTE = {"rows and columns": Learned2d(), "every layer": EveryLayer(), "one for all layers": EveryLayer(shared=True)}
ABSOLUTE["rows and columns in every layer"] = EveryLayer(kind=Learned2d(resampling="bicubic"))
RELATIVE = {"bias": RelativeBias(), "shared bias": RelativeBias(shared=True), "network": RelativeMLP(hidden=8)}


@pytest.mark.parametrize("position", [*ABSOLUTE.values(), *RELATIVE.values()], ids=[*ABSOLUTE, *RELATIVE])
def test_positions_of_every_kind_do_for_another_grid_what_the_trained_model_does_there(position):
    source = trained(position=position, num_registers=1)
    fitted = fit_encoder(target(position=position, num_registers=1, image_size=(48, 32)), source).eval()
    images = random_images(2, 3, 48, 32)
    assert_close(fitted.features(images), source.classifier.features(images))
    again = fit_encoder(target(position=position, num_registers=1), source).eval()
    assert torch.equal(again.features(IMAGES), source.classifier.features(IMAGES))


def test_relative_keys_fit_the_grid_they_were_trained_on_alone():
    source = trained(position=RelativeKeys())
    same = fit_encoder(target(position=RelativeKeys()), source).eval()
    assert torch.equal(same.features(IMAGES), source.classifier.features(IMAGES))
    with pytest.raises(InputError, match=r"relative keys are of the grid they were trained on; take image_size 32"):
        fit_encoder(target(position=RelativeKeys(), image_size=48), source)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (RelativeBias(resampling="antialiased_bicubic"), RelativeBias()),
        (EveryLayer(kind=Learned(resampling="bicubic")), EveryLayer()),
        (EveryLayer(kind=Learned2d(resampling="bicubic"), shared=True), EveryLayer(kind=Learned2d(), shared=True)),
        (Learned(resampling="bicubic"), Learned()),
        (Learned2d(resampling="bicubic"), Learned2d()),
    ],
)
def test_how_positions_are_resized_later_may_differ(given, wanted):
    source = trained(position=given)
    fitted = fit_encoder(target(position=wanted), source).eval()
    assert torch.equal(fitted.features(IMAGES), source.classifier.features(IMAGES))


@pytest.mark.parametrize("position", [RelativeBias(), EveryLayer(), EveryLayer(kind=Learned2d(), shared=True)])
def test_what_layers_know_of_a_class_token_goes_with_it(position):
    source = trained(position=position, num_registers=1)
    fitted = fit_encoder(target(position=position, class_token=False, num_registers=1), source)
    assert not any("class_token" in name for name in fitted.encoder.state_dict())


def test_a_norm_that_stood_before_pooling_may_stand_after_it():
    source = trained()
    fitted = fit_encoder(target(final_norm=False, pooling=Mean(norm=True)), source)
    assert fitted.encoder.state_dict().keys() == source.classifier.encoder.state_dict().keys() - {
        "norm.weight",
        "norm.bias",
    }
    with pytest.raises(InputError, match="trained with final_norm False, not True"):
        fit_encoder(target(), trained(final_norm=False))
    with pytest.raises(InputError, match="trained with final_norm True, not False"):
        fit_encoder(target(final_norm=False), source)


def test_a_resnet_is_the_trained_one_whatever_the_image_size():
    shape = ResNetConfig(units=(1, 1), image_size=32)
    config = ClassifierConfig(encoder=shape, pooling=Mean(), num_classes=9)
    source = Product(randomise(config.build()), EvalView(image_size=32))
    wanted = ClassifierConfig(encoder=dataclasses.replace(shape, image_size=48), pooling=Mean(), num_classes=5)
    images = random_images(1, 3, 48, 48)
    assert torch.equal(fit_encoder(wanted, source).eval().features(images), source.classifier.features(images))
    for changes, message in (({"units": (1, 2)}, "missing"), ({"norm_eps": 1e-6}, "norm_eps 1e-05, not 1e-06")):
        other = dataclasses.replace(wanted, encoder=dataclasses.replace(shape, **changes))
        with pytest.raises(InputError, match=message):
            fit_encoder(other, source)


def test_a_hybrid_is_the_trained_one():
    stem = ResNetStem(units=(1, 1))
    source = trained(stem=stem)
    fitted = fit_encoder(target(stem=stem), source).eval()
    assert torch.equal(fitted.features(IMAGES), source.classifier.features(IMAGES))
    with pytest.raises(InputError, match=r"trained with stem ResNetStem.*norm_eps=1e-06.*, not .*norm_eps=1e-05"):
        fit_encoder(target(stem=dataclasses.replace(stem, norm_eps=1e-5)), source)


def test_a_vit_is_no_resnet():
    resnet = ClassifierConfig(encoder=ResNetConfig(units=(1,), image_size=32), pooling=Mean())
    with pytest.raises(InputError, match="these weights do not fit BiT R1x1: they are a ViT 32x2/8"):
        fit_encoder(resnet, trained())


def test_attention_pooling_comes_along():
    source = trained(pooling=AttentionPool())
    fitted = fit_encoder(target(pooling=AttentionPool()), source).eval()
    assert torch.equal(fitted.features(IMAGES), source.classifier.features(IMAGES))


@pytest.mark.parametrize("source_slot", [True, False])
@pytest.mark.parametrize("target_slot", [True, False])
def test_the_place_of_the_class_token_is_kept_however_it_is_stored(source_slot, target_slot):
    source = trained(position=Learned(class_token_slot=source_slot), num_registers=1)
    fitted = fit_encoder(target(position=Learned(class_token_slot=target_slot), num_registers=1), source).eval()
    assert torch.equal(fitted.features(IMAGES), source.classifier.features(IMAGES))


def test_a_class_token_the_new_model_has_no_use_for_is_left_behind():
    source = trained(num_registers=2)
    fitted = fit_encoder(target(class_token=False, num_registers=2), source)
    assert torch.equal(fitted.encoder.get_parameter("prefix"), source.classifier.encoder.get_parameter("prefix")[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64}, r"29 of another shape \(prefix is 1 x 32, not 1 x 64"),
        ({"depth": 3}, r"12 missing \(blocks\.2\.norm1"),
        ({"depth": 1}, r"12 unexpected \(blocks\.1\.norm1"),
        ({"patch_size": 16}, r"stem.weight is 32 x 3 x 8 x 8, not 32 x 3 x 16 x 16"),
        ({"position": SinCos2d()}, r"trained with position Learned.*, not SinCos2d"),
        ({"num_heads": 2}, "num_heads 4, not 2"),
        ({"norm_eps": 1e-5}, "norm_eps 1e-06, not 1e-05"),
        ({"block": Parallel()}, r"block PreNorm\(\), not Parallel\(\)"),
        ({"block": BranchNorm()}, r"block PreNorm\(\), not BranchNorm\(\)"),
        ({"feed_forward": GELU(tanh=True)}, r"feed_forward GELU\(tanh=False\), not GELU\(tanh=True\)"),
        ({"position": EveryLayer()}, "trained with position Learned.*, not EveryLayer"),
        ({"position": RelativeBias()}, "trained with position Learned.*, not RelativeBias"),
        ({"stem": ResNetStem(units=(1, 1))}, "trained with stem Patchify.*, not ResNetStem"),
    ],
)
def test_weights_of_another_model_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        fit_encoder(target(**changes), trained())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "other"),
    [(RoPE2d(), SinCos2d()), (RoPE2d(), NoPosition()), (RoPE2d(), RoPE2d(base=1e4)), (SinCos2d(), RoPE2d())],
)
def test_positions_without_tensors_must_agree_too(source, other):
    with pytest.raises(InputError, match="trained with position"):
        fit_encoder(target(position=other), trained(position=source))
