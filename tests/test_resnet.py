import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch.testing import assert_close

from references import random_images, randomise
from vitreous.errors import InputError
from vitreous.resnet import Epsilons, ResNetConfig, ResNetStem, StandardisedConv, pad_same
from vitreous.variants import encoder

TIMM = {"variance_eps": 1e-8, "norm_eps": 1e-5}


def timms(ours, units, multiplier):
    """timm's BiT with the weights of `ours`."""
    convolution = partial(StdConv2d, eps=1e-8)
    channels = (256, 512, 1024, 2048)[: len(units)]
    theirs = ResNetV2(
        units, channels, num_classes=0, width_factor=multiplier, stem_type="fixed", conv_layer=convolution
    )
    tensors = {}
    for name, tensor in ours.state_dict().items():
        module, _, rest = name.partition(".")
        if module == "stages":
            stage, unit, rest = rest.split(".", 2)
            name = f"stages.{stage}.blocks.{unit}.{rest.replace('shortcut', 'downsample.conv')}"
        tensors[name.replace("root", "stem.conv")] = tensor
    theirs.load_state_dict(tensors)
    return theirs.to(ours.root.weight.dtype).eval()


def tokens_of(features):
    return features.flatten(2).mT


@pytest.mark.parametrize(("units", "multiplier"), [((1, 2), 1), ((1,), 2), ((1, 1, 1), 1)])
@torch.no_grad()
def test_a_resnet_is_timms_bit_in_float64(units, multiplier):
    ours = randomise(ResNetConfig(units=units, multiplier=multiplier, **TIMM).build()).double()
    theirs = timms(ours, units, multiplier)
    for size in [(32, 32), (33, 47), (31, 64), (1, 2)]:
        images = random_images(2, 3, *size).double()
        found, expected = ours(images), theirs.forward_features(images)
        assert found.grid == expected.shape[2:]
        assert_close(found.patches, tokens_of(expected), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_a_resnet_is_near_timms_in_float32():
    ours = randomise(ResNetConfig(units=(1, 2), **TIMM).build())
    images = random_images(2, 3, 48, 40)
    expected = tokens_of(timms(ours, (1, 2), 1).forward_features(images))
    assert (ours(images).patches - expected).norm() < 1e-5 * expected.norm()


def test_gradients_of_a_resnet_are_timms():
    ours = randomise(ResNetConfig(units=(1, 1), **TIMM).build()).double()
    theirs, images = timms(ours, (1, 1), 1), random_images(2, 3, 33, 32).double()
    ours(images).patches.square().mean().backward()
    theirs.forward_features(images).square().mean().backward()
    for one, other in (
        (ours.root, theirs.stem.conv),
        (ours.norm, theirs.norm),
        (ours.stages[1][0].shortcut, theirs.stages[1].blocks[0].downsample.conv),
        (ours.stages[1][0].conv2, theirs.stages[1].blocks[0].conv2),
    ):
        assert_close(one.weight.grad, other.weight.grad, atol=1e-12, rtol=1e-9)


STANDARDISED = {
    "vision_transformer": (
        Epsilons(norm=1e-6, variance=0, deviation=1e-5),
        lambda w: (w - w.mean((1, 2, 3), keepdims=True)) / (w.std((1, 2, 3), keepdims=True) + 1e-5),
    ),
    "big_vision": (
        Epsilons(norm=1e-5, variance=1e-10, deviation=0),
        lambda w: (w - w.mean((1, 2, 3), keepdims=True)) / np.sqrt(w.var((1, 2, 3), keepdims=True) + 1e-10),
    ),
    "timm": (
        Epsilons(norm=1e-5, variance=1e-8, deviation=0),
        lambda w: (
            F.batch_norm(torch.from_numpy(w).reshape(1, 4, -1), None, None, training=True, eps=1e-8)
            .reshape(w.shape)
            .numpy()
        ),
    ),
}


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-5])
@pytest.mark.parametrize("source", STANDARDISED)
@torch.no_grad()
def test_filters_are_standardised_with_the_epsilons_of_their_source(source, scale):
    eps, formula = STANDARDISED[source]
    convolution = StandardisedConv(3, 4, 3, same=False, eps=eps).double()
    convolution.weight.copy_(random_images(4, 3, 3, 3) * scale + 0.5 * scale)
    x = random_images(2, 3, 9, 9).double()
    expected = F.conv2d(x, torch.from_numpy(formula(convolution.weight.numpy())), padding=1)
    assert_close(convolution(x), expected, atol=1e-11, rtol=1e-11)


def test_defaults_are_the_epsilons_of_the_papers_sources():
    bit = ResNetConfig()
    hybrid = encoder("R50+B/16").stem
    assert (bit.norm_eps, bit.variance_eps, bit.deviation_eps) == (1e-5, 1e-10, 0)
    assert (hybrid.norm_eps, hybrid.variance_eps, hybrid.deviation_eps) == (1e-6, 0, 1e-5)


def tensorflows_same(size, side, stride):
    """Pixels before and after, as TensorFlow's documentation of padding="SAME" has them."""
    total = max(side - stride, 0) if size % stride == 0 else max(side - size % stride, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (3, 2), (3, 1), (1, 2), (1, 1), (3, 3), (2, 5)])
def test_same_padding_is_tensorflows(side, stride):
    for height in (1, 2, 7, 8):
        for width in (1, 5, 6):
            x = random_images(1, 2, height, width)
            pads = tensorflows_same(height, side, stride), tensorflows_same(width, side, stride)
            padded = pad_same(x, side, stride, value=-2.5)
            expected = np.pad(x.numpy(), ((0, 0), (0, 0), *pads), constant_values=-2.5)
            assert np.array_equal(padded.numpy(), expected)
            windows = [(n - side) // stride + 1 for n in padded.shape[2:]]
            assert windows == [math.ceil(height / stride), math.ceil(width / stride)]


@torch.no_grad()
def test_every_unit_of_a_fresh_resnet_is_its_shortcut():
    for stage in ResNetConfig(units=(2, 1)).build().stages:
        for unit in stage:
            x = random_images(1, unit.conv1.in_channels, 6, 6)
            expected = x if unit.shortcut is None else unit.shortcut(unit.norm1(x).relu())
            assert torch.equal(unit(x), expected)


def test_filters_start_lecun_normal_and_norms_at_one_and_zero():
    torch.manual_seed(0)
    model = ResNetConfig(units=(2,)).build()
    for name, parameter in model.named_parameters():
        if "conv3" in name:
            assert not parameter.any()
        elif parameter.ndim == 4:
            assert parameter.std().item() == pytest.approx(parameter[0].numel() ** -0.5, rel=0.05), name
        else:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()


@pytest.mark.parametrize("epsilons", [{}, TIMM, {"variance_eps": 1e-16, "deviation_eps": 1e-5}])
def test_a_fresh_resnet_has_finite_gradients(epsilons):
    torch.manual_seed(0)
    model = ResNetConfig(units=(1, 1), **epsilons).build()
    model(random_images(2, 3, 32, 32)).patches.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_resnet_has_no_prefix_and_takes_any_size():
    model = ResNetConfig(units=(1,), image_size=(20, 33)).build()
    tokens = model(random_images(2, 3, 20, 33))
    assert tokens.prefix.shape == (2, 0, 256)
    assert tokens.grid == model.config.grid == (5, 9)
    assert tokens.coords.shape == (1, 45, 2)
    model.config.check_image(1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": ()}, "units is empty; a ResNet has at least one stage, such as 3,4,6,3"),
        ({"units": (3, 0)}, "units is 0; it must be 1 or more"),
        ({"multiplier": 0}, "multiplier is 0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"variance_eps": 0.0}, "variance_eps is 0.0; it must"),  # the last filters of a unit start at zero
    ],
)
def test_a_resnet_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        ResNetConfig(**changes)


def test_a_filter_without_deviation_has_a_gradient():
    stem = ResNetStem(units=(1,)).build(channels=3, width=8, patch_size=4)
    with torch.no_grad():
        stem.init_weights()
        stem.root.weight[0] = 0.5
    stem(random_images(1, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in stem.parameters())
