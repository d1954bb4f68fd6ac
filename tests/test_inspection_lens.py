"""What the head says of each token at each depth."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.testing import assert_close

from explicit_attention import IMAGES, tiny
from real_model import real_model, real_photos
from vitreous.block import Axial
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.head import DistilledHead, LinearHead
from vitreous.inspection.lens import logit_lens
from vitreous.pooling import AttentionPool, ClassAndDistillation, Mean
from vitreous.vit import ViTConfig


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()


def outputs(classifier) -> list[np.ndarray]:
    found = []
    for block in classifier.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, out: found.append(out.detach().double().numpy()))
    classifier(IMAGES)
    return found


@pytest.mark.parametrize("pooling", ["class token", "mean"])
def test_the_lens_equals_norm_and_head_in_numpy(pooling):
    classifier = tiny(num_registers=1) if pooling == "class token" else tiny(class_token=False)
    encoder, head = classifier.encoder, classifier.head.linear
    expected = [log_softmax(linear(layer_norm(x, encoder.norm), head), axis=-1) for x in outputs(classifier)]
    found = logit_lens(classifier, IMAGES)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(logit_lens(classifier, IMAGES, layers=(-1, 0)), found[[2, 0]])


def test_a_norm_behind_the_mean_is_that_of_the_token():
    classifier = tiny(pooling=Mean(norm=True), final_norm=False)
    last = layer_norm(outputs(classifier)[-1], classifier.pooling.norm)
    found = logit_lens(classifier, IMAGES, layers=(-1,))[0]
    np.testing.assert_allclose(found, log_softmax(linear(last, classifier.head.linear), axis=-1), rtol=1e-4, atol=1e-4)


def build(**parts) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "image_size": 12}
    encoder = ViTConfig(**shape, num_registers=1)
    classifier = ClassifierConfig(encoder=encoder, num_classes=5, **parts).build().eval()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return classifier


def test_two_heads_score_a_token_together():
    classifier = build(pooling=ClassAndDistillation(), head=DistilledHead())
    last = layer_norm(outputs(classifier)[-1], classifier.encoder.norm)
    scores = (linear(last, classifier.head.linear) + linear(last, classifier.head.distillation)) / 2
    np.testing.assert_allclose(logit_lens(classifier, IMAGES)[-1], log_softmax(scores, axis=-1), rtol=1e-4, atol=1e-4)


def test_the_class_token_behind_the_last_layer_says_what_the_model_says():
    for classifier in (tiny(), build(head=LinearHead(representation=7))):
        assert_close(logit_lens(classifier, IMAGES)[-1, :, 0], classifier(IMAGES).log_softmax(-1))


def test_the_lens_of_real_weights_ends_in_what_timm_says(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 2)
    found = logit_lens(ours, photos, layers=(0, 11))
    assert found.shape == (2, 2, 197, 1000)
    assert_close(found[1, :, 0].double(), theirs(photos.double()).log_softmax(-1).detach(), rtol=1e-4, atol=1e-4)
    assert_close(found.exp().sum(-1), torch.ones(2, 2, 197))


def test_axial_blocks_are_read_and_attention_pooling_is_refused():
    assert logit_lens(tiny(block=Axial(), class_token=False), IMAGES).shape == (3, 2, 6, 5)
    with pytest.raises(
        InputError, match=r"^the logit lens needs a head that scores tokens, not one behind AttentionPool"
    ):
        logit_lens(build(pooling=AttentionPool()), IMAGES)
    with pytest.raises(InputError, match=r"^no layers \[3\] in a model of 3; give 0 to 2$"):
        logit_lens(tiny(), IMAGES, layers=[3])
