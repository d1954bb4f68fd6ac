from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from known_features import clusters
from vitreous.evaluation.features import Features
from vitreous.evaluation.probe import Attentive, AttentiveProbes, Linear
from vitreous.schedule import Cosine
from vitreous.seeding import generator


def plain_sgd(train, test, *, rate, epochs, batch_size, num_classes):
    """A linear layer from zero, trained by torch's SGD as anyone would."""
    mean, deviation = train.values.astype(np.float64).mean(0), train.values.astype(np.float64).std(0) + 1e-5
    x, z = (torch.from_numpy((part.values - mean) / deviation).float() for part in (train, test))
    layer = nn.Linear(x.shape[1], num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    steps = len(x) // batch_size
    for epoch in range(epochs):
        order = generator(0, "probe", epoch).permutation(len(x))
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            for group in optimizer.param_groups:
                group["lr"] = rate * batch_size / 256 * Cosine(peak=1.0)((epoch * steps + step) / (epochs * steps))
            optimizer.zero_grad()
            F.cross_entropy(layer(x[rows]), torch.from_numpy(train.labels[rows])).backward()
            optimizer.step()
    with torch.no_grad():
        return layer(z).softmax(dim=1).numpy()


def test_rates_trained_together_end_as_each_would_alone():
    known, rates = clusters(), (0.01, 0.3, 3.0)
    probe = Linear(learning_rates=rates, epochs=4, batch_size=16)
    ours = probe.answers(
        known.train, known.test, rates, num_classes=3, device=torch.device("cpu"), progress=lambda _: None
    )
    for answer, rate in zip(ours, rates):
        expected = plain_sgd(known.train, known.test, rate=rate, epochs=4, batch_size=16, num_classes=3)
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_the_best_rate_is_chosen_and_the_score_is_that_of_all_training_images():
    known = clusters(train=120)
    probe = Linear(learning_rates=(1e-3, 0.03, 0.3), epochs=10, batch_size=32)
    figures = known.evaluated(probe).figures
    best = max(figures["grid"], key=lambda point: point["dev_top1"])
    assert figures["learning_rate"] == best["learning_rate"]
    rate = figures["learning_rate"]
    expected = plain_sgd(known.train, known.test, rate=rate, epochs=10, batch_size=32, num_classes=3)
    assert figures["top1"]["value"] == (expected.argmax(1) == known.test.labels).mean()


def test_a_rate_that_diverges_is_merely_not_chosen():
    figures = clusters().evaluated(Linear(learning_rates=(0.1, 1e30), epochs=3)).figures
    assert figures["learning_rate"] == 0.1


@torch.no_grad()
def test_the_attentive_probe_is_multi_head_attention_with_one_query():
    torch.manual_seed(0)
    width, heads, classes = 12, 3, 5
    theirs = nn.MultiheadAttention(width, heads, batch_first=True, bias=False).eval()
    theirs.out_proj.weight.copy_(torch.eye(width))
    query, linear = torch.randn(1, 1, width), nn.Linear(width, classes)
    project_query, project_key, project_value = theirs.in_proj_weight.chunk(3)
    ours = AttentiveProbes(1, width, classes, heads)
    q = (project_query @ query[0, 0]).view(heads, -1) / (width // heads) ** 0.5
    ours.query[0] = torch.einsum("hd,hdw->wh", q, project_key.view(heads, -1, width))
    ours.value[0] = project_value.view(heads, -1, width).transpose(1, 2)
    ours.linear.weight[0] = linear.weight.T
    ours.linear.bias[0, 0] = linear.bias
    x = torch.randn(4, 7, width)
    expected = linear(theirs(query.expand(4, -1, -1), x, x, need_weights=False)[0][:, 0])
    torch.testing.assert_close(ours(x)[0], expected)


def test_attention_finds_the_one_patch_that_tells_the_class():
    known = clusters(patches=9, train=240, width=8)
    attentive = known.evaluated(Attentive(epochs=20, batch_size=64, num_heads=2)).figures["top1"]["value"]
    means = [Features(part.values.mean(1).astype(np.float32), part.labels) for part in (known.train, known.test)]
    linear = replace(known, train=means[0], test=means[1]).evaluated(Linear(batch_size=64)).figures["top1"]["value"]
    assert attentive > linear + 0.2


@pytest.mark.parametrize("probe", [Linear(epochs=2), Attentive(epochs=2)])
def test_the_same_seed_gives_the_same_figures(probe):
    known = clusters(patches=0 if isinstance(probe, Linear) else 4)
    assert known.evaluated(probe).figures == known.evaluated(probe).figures
