from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from contracts import variants
from references import random_images, randomise, tiny
from vitreous.block import Axial, Block
from vitreous.budget import plain_classifier
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import FeedForward
from vitreous.head import DistilledHead, LinearHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, ClassToken, Mean
from vitreous.position import EveryLayer, Learned, Learned2d, Position, RoPE2d
from vitreous.relative import Relative, RelativeBias
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.stem import Patchify

ENCODERS = [
    *(tiny(position=position) for position in variants(Position)),
    *(tiny(block=block) for block in variants(Block) if not isinstance(block, Axial)),
    *(tiny(feed_forward=feed_forward) for feed_forward in variants(FeedForward)),
    *(tiny(stem=stem) for stem in (Patchify(bias=False), ResNetStem(units=(1, 1)), ResNetStem(units=()))),
    tiny(position=EveryLayer(kind=Learned2d(), shared=True), num_registers=2),
    tiny(position=RelativeBias(shared=True), num_registers=2),
    tiny(qk_norm=True, rms_norm=True, stem_norm=True, position=RoPE2d()),
    tiny(layer_scale=0.1, qkv_bias=False, final_norm=False),
    tiny(image_size=(32, 24), pad=True),
]
CLASSIFIERS = [  # a class token does not see how the patches attend to each other in the last layer
    *(
        ClassifierConfig(
            encoder=encoder, pooling=Mean() if isinstance(encoder.position, Relative) else ClassToken(), num_classes=3
        )
        for encoder in ENCODERS
    ),
    *(
        ClassifierConfig(encoder=encoder, pooling=Mean(), num_classes=3)
        for encoder in (
            ResNetConfig(units=(1, 1)),
            tiny(block=Axial(), class_token=False),
            tiny(block=Axial(), class_token=False, position=RoPE2d()),
        )
    ),
    *(
        ClassifierConfig(encoder=tiny(num_registers=1), pooling=pooling, head=head, num_classes=3)
        for pooling, head in (
            (ClassToken(), LinearHead(representation=16)),
            (ClassAndDistillation(), DistilledHead()),
            (AttentionPool(), LinearHead()),
            (Mean(norm=True), LinearHead()),
        )
    ),
]


def short(config):
    """The name of a case: what differs from the default."""
    default = ClassifierConfig(encoder=tiny(), num_classes=3)
    parts = [
        f"{name}={value}"
        for ours, theirs in ((config, default), (config.encoder, default.encoder))
        for name, value in vars(ours).items()
        if name != "encoder" and getattr(theirs, name, None) != value
    ]
    return f"{type(config.encoder).__name__}({', '.join(parts)})"


@pytest.mark.parametrize("config", CLASSIFIERS, ids=short)
def test_every_parameter_of_every_variant_gets_a_gradient(config):
    model = randomise(config.build()).train()
    loss = F.cross_entropy(model(random_images(4, 3, 32, 24)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.isfinite()
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.numel() and not (parameter.grad.isfinite().all() and parameter.grad.any())
    ] == []


@pytest.mark.parametrize("config", CLASSIFIERS, ids=short)
@torch.no_grad()
def test_images_of_any_size_that_divides_give_logits(config):
    model = randomise(config.build())
    for size in [(8, 8), (64, 24)]:
        logits = model(random_images(2, 3, *size))
        assert logits.shape == (2, 3)
        assert logits.isfinite().all()


@pytest.mark.parametrize("config", CLASSIFIERS, ids=short)
@torch.no_grad()
def test_logits_do_not_depend_on_the_rest_of_the_batch(config):
    model, images = randomise(config.build()), random_images(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-5, rtol=1e-5)


def test_logits_are_the_head_of_the_features():
    config = ClassifierConfig(encoder=tiny(), head=LinearHead(representation=16), num_classes=3)
    model, images = randomise(config.build()), random_images(2, 3, 32, 32)
    assert model.features(images).shape == (2, 32)
    assert torch.equal(model(images), model.head(model.features(images)))


@pytest.mark.parametrize(
    "encoder",
    [*ENCODERS, tiny(depth=1), tiny(drop_path=0.5)],
    ids=lambda encoder: short(plain_classifier(encoder, num_classes=3)),
)
@pytest.mark.parametrize("pooling", [ClassToken(), ClassAndDistillation()], ids=["one", "two"])
def test_patches_that_no_head_reads_are_left_out_of_the_last_block_alone(encoder, pooling):
    encoder = replace(encoder, num_registers=2)
    model = randomise(ClassifierConfig(encoder=encoder, pooling=pooling, num_classes=3).build()).double().train()
    images, seen = random_images(3, 3, 32, 24).double(), []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))

    def answer(forward):
        torch.manual_seed(0)
        model.zero_grad()
        logits = forward(images)
        (logits * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)).sum().backward()
        return logits, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.numel()}

    whole = answer(lambda images: model.head(model.pooling(model.encoder(images))))
    tokens = [seen.pop() for _ in model.encoder.blocks]
    torch.testing.assert_close(answer(model), whole, atol=1e-12, rtol=1e-9)
    assert seen == [*tokens[1:], 3]


def test_the_head_is_as_wide_as_what_is_pooled():
    parts = {"pooling": ClassAndDistillation(), "num_classes": 3}
    model = ClassifierConfig(encoder=tiny(num_registers=1), **parts).build()
    assert model.head.linear.in_features == 64
    resnet = ClassifierConfig(encoder=ResNetConfig(units=(1,), multiplier=2), pooling=Mean(), num_classes=3).build()
    assert resnet.head.linear.in_features == 512


def test_a_resnet_with_the_default_pooling_is_answered_with_the_one_it_has():
    with pytest.raises(InputError, match=r"not ResNetConfig; pool with Mean\(\)"):
        ClassifierConfig(encoder=ResNetConfig(units=(1,))).build()


@pytest.mark.parametrize(
    ("encoder", "pooling"),
    [
        (tiny(), ClassToken()),
        (tiny(stem=ResNetStem(units=()), position=Learned2d()), ClassToken()),
        (tiny(block=Axial(), class_token=False, position=Learned()), Mean()),
        (tiny(position=RelativeBias()), Mean()),
    ],
    ids=["ViT", "hybrid", "axial", "relative"],
)
def test_it_learns_one_batch_by_heart(encoder, pooling):
    torch.manual_seed(0)
    model = ClassifierConfig(encoder=encoder, pooling=pooling, num_classes=4).build()
    images, labels = random_images(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("number", [0, -3])
def test_a_classifier_tells_at_least_one_class(number):
    with pytest.raises(InputError, match=f"num_classes is {number}; it must be 1 or more"):
        ClassifierConfig(num_classes=number)
