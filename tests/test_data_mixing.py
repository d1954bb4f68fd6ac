import pytest
import torch
from timm.data.mixup import mixup_target
from torch.testing import assert_close

from vitreous.data.mixing import Mixing
from vitreous.errors import InputError

IMAGES = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 12).clone()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def mixed(mixing: Mixing, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return mixing(IMAGES.clone(), LABELS, num_classes=4)


@pytest.mark.parametrize("seed", range(20))
def test_mixup_blends_an_image_and_its_label_alike(seed):
    images, shares = mixed(Mixing(mixup=0.8), seed)
    other = IMAGES.roll(1, 0)
    share = ((images - other) / (IMAGES - other)).mean()
    assert_close(images, share * IMAGES + (1 - share) * other)
    assert_close(shares, share * torch.eye(4)[LABELS] + (1 - share) * torch.eye(4)[LABELS.roll(1)])


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_a_rectangle_and_shares_the_label_by_area(seed):
    images, shares = mixed(Mixing(cutmix=1.0), seed)
    pasted = (images != IMAGES)[0, 0]
    rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
    assert pasted.sum() == rows * columns
    assert_close(images[:, :, pasted], IMAGES.roll(1, 0)[:, :, pasted])
    area = 1 - pasted.float().mean()
    assert_close(shares, area * torch.eye(4)[LABELS] + (1 - area) * torch.eye(4)[LABELS.roll(1)])


def test_with_smoothing_the_target_is_timms():
    """timm pairs an image with the one that is as far from the end; both are neighbours of two."""
    torch.manual_seed(3)
    labels = torch.tensor([2, 0])
    images, shares = Mixing(mixup=0.8)(IMAGES[:2].clone(), labels, num_classes=4)
    share = float(images[1].mean())
    assert_close(shares * 0.9 + 0.1 / 4, mixup_target(labels, 4, lam=share, smoothing=0.1))


@pytest.mark.parametrize(
    ("mixing", "cut", "blended"),
    [
        (Mixing(mixup=1.0, cutmix=1.0), 0.5, 0.5),
        (Mixing(mixup=1.0, cutmix=1.0, cutmix_ratio=0.25, ratio=0.8), 0.2, 0.6),
        (Mixing(mixup=1.0, cutmix_ratio=1.0), 0.0, 1.0),
        (Mixing(cutmix=1.0, cutmix_ratio=0.0), 1.0, 0.0),
        (Mixing(), 0.0, 0.0),
        (Mixing(mixup=1.0, ratio=0.0), 0.0, 0.0),
    ],
)
def test_batches_are_mixed_as_often_as_asked(mixing, cut, blended):
    found = {"cut": 0, "blended": 0}
    for seed in range(400):
        images, shares = mixed(mixing, seed)
        whole = (images == images.round()).all()
        if not whole:
            found["blended"] += 1
        elif not torch.equal(images, IMAGES):
            found["cut"] += 1
        assert_close(shares.sum(1), torch.ones(6))
    assert found["blended"] / 400 == pytest.approx(blended, abs=0.06)
    assert found["cut"] / 400 == pytest.approx(cut, abs=0.08)  # of some, the rectangle is empty or everything


def test_a_share_outside_of_its_range_is_refused():
    with pytest.raises(InputError, match=r"cutmix_ratio is 1\.5; it must lie between 0 and 1"):
        Mixing(cutmix_ratio=1.5)


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing()])
def test_rows_of_classes_are_mixed_as_classes_are(mixing):
    torch.manual_seed(1)
    images, shares = mixing(IMAGES.clone(), torch.eye(4)[LABELS], num_classes=4)
    expected = mixed(mixing, 1)
    assert_close((images, shares), expected)
