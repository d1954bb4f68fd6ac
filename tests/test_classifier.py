import math

import pytest
import torch
import torch.nn.functional as F

from references import random_images, randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, ClassToken, Mean
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("pooling", [ClassToken(), Mean(), AttentionPool()])
def test_the_first_loss_is_the_logarithm_of_the_number_of_classes(num_classes, pooling):
    model = ClassifierConfig(encoder=tiny(), pooling=pooling, num_classes=num_classes).build()
    logits = model(random_images(4, 3, 32, 32))
    loss = F.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
    assert loss.item() == torch.tensor(math.log(num_classes)).item()


def test_logits_are_the_head_of_the_features():
    config = ClassifierConfig(encoder=tiny(), head=LinearHead(representation=16), num_classes=3)
    model, images = randomise(config.build()), random_images(2, 3, 32, 32)
    assert model.features(images).shape == (2, 32)
    assert torch.equal(model(images), model.head(model.features(images)))


@pytest.mark.parametrize("position", [NoPosition(), Learned(), SinCos2d(), RoPE2d()])
@pytest.mark.parametrize("size", [(8, 8), (64, 24)])
def test_images_of_any_size_that_divides_give_logits(position, size):
    model = randomise(ClassifierConfig(encoder=tiny(position=position), num_classes=3).build())
    logits = model(random_images(2, 3, *size))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    model = ClassifierConfig(encoder=tiny(), num_classes=4).build()
    images, labels = random_images(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
