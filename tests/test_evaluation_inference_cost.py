import pytest
import torch
from torch import nn

from references import randomise, tiny
from vitreous import distributed
from vitreous.classifier import ClassifierConfig
from vitreous.console import Console
from vitreous.data.views import EvalView
from vitreous.evaluation.features import Frozen
from vitreous.evaluation.inference_cost import Cost, LiveBytes
from vitreous.packing import packed, pays


def test_live_bytes_are_those_held_at_once():
    first, second = nn.Linear(10, 100, bias=False), nn.Linear(100, 5, bias=False)
    x = torch.randn(8, 10)
    with torch.inference_mode(), LiveBytes() as live:
        hidden = first(x)
        second(hidden)
        del hidden
        torch.relu(x)
    assert live.most == 4 * 8 * (100 + 5)
    assert live.now == 0


def test_a_view_of_what_was_given_costs_nothing():
    x = torch.randn(8, 10)
    with torch.inference_mode(), LiveBytes() as live:
        x.view(10, 8).transpose(0, 1)
    assert live.most == 0


@pytest.mark.parametrize("faster", [False, True])
def test_figures_are_the_models(faster):
    world = distributed.start(device="cpu", threads=1)
    if faster and not pays(world.device):
        pytest.skip("oneDNN's packed products are for AMD's processors")
    classifier = randomise(ClassifierConfig(encoder=tiny(), num_classes=3).build())
    view = EvalView(image_size=32, crop_ratio=1.0)
    model = Frozen(classifier, view, world=world, faster=packed(classifier) if faster else None)
    figures = Cost(batch_sizes=(1, 4), seconds=0.01).run(model, None, console=Console(quiet=True)).figures  # pyright: ignore
    weights = sum(parameter.nbytes for parameter in classifier.parameters())
    assert figures["parameters"] == weights // 4
    assert figures["tokens"] == 17
    one, four = figures["speed"]
    assert weights / 1e6 < one["peak_mb"] < four["peak_mb"] < 10 * weights / 1e6
    assert all(speed["images_per_s"] > 0 for speed in (one, four))
