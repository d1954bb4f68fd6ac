import pytest
import torch

from references import random_images, randomise, tiny
from vitreous import packing
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.head import LinearHead
from vitreous.packing import PackedLinear, packed, pays
from vitreous.pooling import AttentionPool, Mean
from vitreous.predict import Model
from vitreous.resnet import ResNetConfig

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.mark.parametrize(
    "config",
    [
        ClassifierConfig(encoder=tiny()),
        ClassifierConfig(encoder=tiny(feed_forward=GELU(tanh=True)), head=LinearHead(representation=8)),
        ClassifierConfig(encoder=tiny(feed_forward=QuickGELU(), qkv_bias=False)),
        ClassifierConfig(encoder=tiny(feed_forward=SwiGLU()), pooling=AttentionPool()),
        ClassifierConfig(encoder=ResNetConfig(units=(1, 1)), pooling=Mean()),
    ],
)
@torch.inference_mode()
def test_a_packed_classifier_is_the_same_function(config):
    plain, images = randomise(config.build()), random_images(3, 3, 32, 32)
    fast = packed(plain)
    torch.testing.assert_close(fast(images), plain(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.features(images), plain.features(images), atol=1e-5, rtol=1e-5)


def test_gelu_goes_into_the_product_and_no_plain_layer_is_left():
    fast = packed(randomise(ClassifierConfig(encoder=tiny(feed_forward=GELU(tanh=True))).build()))
    assert not any(isinstance(module, torch.nn.Linear) for module in fast.modules())
    up = fast.get_submodule("encoder.blocks.0.mlp.up")
    assert isinstance(up, PackedLinear)
    assert up.post == ("gelu", "tanh")


def test_what_is_not_packed_is_shared():
    plain = randomise(ClassifierConfig(encoder=tiny()).build())
    name = "encoder.prefix"
    assert packed(plain).get_parameter(name).data_ptr() == plain.get_parameter(name).data_ptr()


def test_it_pays_on_amd_alone(monkeypatch):
    monkeypatch.setattr(packing.platform, "machine", lambda: "x86_64")
    for vendor, better in (("AuthenticAMD", True), ("GenuineIntel", False)):
        monkeypatch.setattr(packing.Path, "read_text", lambda _, vendor=vendor: f"vendor_id : {vendor}")
        assert pays(torch.device("cpu")) is better
    assert not pays(torch.device("meta"))
    monkeypatch.setattr(packing.platform, "machine", lambda: "arm64")
    assert not pays(torch.device("cpu"))


@pytest.mark.parametrize("better", [True, False])
def test_a_loaded_model_answers_in_the_form_that_pays(better, monkeypatch):
    monkeypatch.setattr(packing, "pays", lambda device: better)
    plain = randomise(ClassifierConfig(encoder=tiny(), num_classes=3).build())
    model = Model(plain, view=EvalView(image_size=32), classes=None, device="cpu")
    assert (model.inference is not model.module) is better
    said = model.predict(random_images(3, 32, 32).sigmoid())[0]
    pixels = model.preprocess(random_images(3, 32, 32).sigmoid())[None]
    with torch.inference_mode():
        torch.testing.assert_close(said.score, plain(pixels).softmax(-1).max().item(), atol=1e-5, rtol=0)
