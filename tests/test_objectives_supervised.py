import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch.testing import assert_close

from vitreous.data.batch import Batch
from vitreous.data.mixing import Mixing
from vitreous.errors import InputError
from vitreous.head import LinearHead
from vitreous.objectives.supervised import Supervised, SupervisedObjective
from vitreous.variants import vit

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 1, 2])
SHARES = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)


def built(num_classes: int = 4, **settings) -> SupervisedObjective:
    torch.manual_seed(0)
    return Supervised(**settings).build(vit("32x1/4", image_size=8), num_classes=num_classes)


def batch(number: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(1, number, 3, 8, 8, generator=generator)
    return Batch(images, torch.arange(number) % 4, torch.arange(number))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_shares_is_timms(smoothing):
    losses = built(label_smoothing=smoothing).losses(LOGITS, SHARES)
    smooth = SHARES * (1 - smoothing) + smoothing / 4
    assert_close(losses.mean(), SoftTargetCrossEntropy()(LOGITS, smooth))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_is_a_share_of_one(loss, smoothing):
    objective = built(loss=loss, label_smoothing=smoothing)
    assert_close(objective.losses(LOGITS, LABELS), objective.losses(LOGITS, torch.eye(4)[LABELS]))


def test_the_sigmoid_loss_is_the_sum_over_classes_of_the_formula():
    logits, shares = LOGITS.double().numpy(), SHARES.double().numpy()
    chance = 1 / (1 + np.exp(-logits))
    expected = -(shares * np.log(chance) + (1 - shares) * np.log(1 - chance)).sum(-1)
    assert_close(built(loss="sigmoid").losses(LOGITS.double(), SHARES.double()), torch.from_numpy(expected))


def test_with_a_low_bias_the_sigmoid_loss_starts_at_the_price_of_the_one_class():
    objective = built(1000, loss="sigmoid", head=LinearHead(bias=-10.0))
    first = objective(batch(), 0.0).total.item()
    assert first == pytest.approx(
        10 + 1000 * math.log1p(math.exp(-10)), rel=1e-4
    )  # of 1 + e^-10, float32 keeps two digits


def big_visions_sigmoid_xent(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`sigmoid_xent` of big_vision/utils.py, in NumPy."""
    log_p, log_not_p = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    return -(labels * log_p + (1 - labels) * log_not_p).sum(axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_classes_is_torchs_and_big_visions(smoothing):
    several = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 1.0]])
    losses = built(loss="sigmoid", label_smoothing=smoothing).losses(LOGITS, several)
    smooth = several * (1 - smoothing) + smoothing / 4
    assert_close(losses, F.binary_cross_entropy_with_logits(LOGITS, smooth, reduction="none").sum(-1))
    expected = big_visions_sigmoid_xent(LOGITS.double().numpy(), smooth.double().numpy())
    assert_close(losses.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_images_of_several_classes_are_trained_on_and_mixed(mixing):
    objective = built(loss="sigmoid", mixing=mixing)
    torch.nn.init.normal_(objective.classifier.head.linear.weight)
    several = replace(batch(), labels=torch.eye(4)[batch().labels] + torch.eye(4)[batch().labels.roll(1)])
    torch.manual_seed(5)
    found = objective.train()(several, 0.0)
    torch.manual_seed(5)
    images, shares = mixing(several.images[0], several.labels, num_classes=4)
    logits = objective.scores(images)
    assert_close(found.total, objective.losses(logits, shares).mean())
    right = ((logits.sigmoid() > 0.5) == (shares > 0.5)).all(dim=1)
    assert_close(found.parts, {"exact_match": right.float().mean()})


def test_the_softmax_of_several_classes_is_refused_with_what_to_do():
    several = replace(batch(), labels=torch.ones(6, 4))
    with pytest.raises(InputError, match=r"may show several classes.* give --objective.loss sigmoid"):
        built()(several, 0.0)


def test_images_are_mixed_in_training_alone():
    plain, mixing = built(), built(mixing=Mixing(mixup=0.8))
    for objective in (plain, mixing):
        torch.nn.init.normal_(objective.classifier.head.linear.weight)
        objective.eval()
    mixing.load_state_dict(plain.state_dict())
    assert_close(mixing(batch(), 0.0).total, plain(batch(), 0.0).total)
    torch.manual_seed(5)
    trained = mixing.train()(batch(), 0.0)
    torch.manual_seed(5)
    images, shares = Mixing(mixup=0.8)(batch().images[0], batch().labels, num_classes=4)
    logits = mixing.scores(images)
    assert_close(trained.total, mixing.losses(logits, shares).mean())
    assert_close(trained.parts["accuracy"], (logits.argmax(-1) == shares.argmax(-1)).float().mean())
