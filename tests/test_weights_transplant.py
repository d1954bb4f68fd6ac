import pytest
import torch

from references import random_images, randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d, resample
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
    fitted.encoder.norm.weight.data.zero_()
    assert source.classifier.encoder.norm.weight.abs().sum() > 0


def test_positions_are_resampled_to_the_new_grid():
    source = trained()
    fitted = fit_encoder(target(image_size=48), source)
    expected = resample(source.classifier.encoder.position.table, (6, 6))
    assert torch.equal(fitted.encoder.position.table, expected)


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
    assert torch.equal(fitted.encoder.prefix, source.classifier.encoder.prefix[1:])


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
