import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from conftest import REPOSITORY
from references import tiny
from vitreous.budget import cost, memory, plain_classifier
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.optim import SGD, AdamW
from vitreous.parallel import FullShard, HybridShard, Replicate, local
from vitreous.resnet import ResNetConfig
from vitreous.scaling import NETWORKS, Cluster, Step, Work, best_interval, endurance, held, lost, step, work
from vitreous.variants import encoder

MANY = 2**20
"""So many GPUs that (n - 1) / n is 1."""
PAGE = REPOSITORY / "docs" / "scale.md"


@pytest.fixture(scope="module")
def works() -> dict[str, Work]:
    return {name: work(plain_classifier(encoder(name)), optimizer=AdamW()) for name in ("L/16", "H/14", "g/14")}


def small() -> Work:
    """Two blocks of 5 x 4 and 6 numbers, a rest of 2 x 3, and round figures."""
    block = ((5, 4), (6,))
    return Work(
        groups=(block, block, ((2, 3),)),
        gflops=0.5,
        optimizer=8 * 58,
        cast=116,
        activations=1000,
        recomputed=300,
    )


def test_sizes_are_those_that_budget_measures(works):
    config = plain_classifier(encoder("L/16"))
    whole, spent = memory(config, optimizer=AdamW().build, dtype=torch.bfloat16), cost(config)
    found = works["L/16"]
    assert (found.parameters, found.gflops) == (spent.parameters, spent.gflops)
    assert (found.optimizer, found.cast, found.activations) == (whole.optimizer, whole.weights, whole.activations)
    assert len(found.groups) == 1 + 24
    plain = work(plain_classifier(tiny()), optimizer=SGD(), dtype=torch.float32)
    assert plain.optimizer == 4 * plain.parameters
    assert plain.cast < 100  # nothing is cast; a few numbers of the loss


def test_replicated_all_follows_from_closed_forms():
    cluster = Cluster(gpus=16, gpus_per_node=4, memory=10_000, peak=1e12, utilisation=0.5, network_bandwidth=100)
    found, p = step(small(), cluster, parallel=Replicate(), batch_size=64), 58
    assert found.parameters == p == 2 * (5 * 4 + 6) + 2 * 3
    assert found.state == 4 * p + 4 * p + 8 * p + 4 * p  # weights, gradients, moments, average
    assert found.passing == 2 * p + 4 * p  # weights in bfloat16, gradients in buckets
    assert (found.images, found.micro_batches, found.activations) == (4, 1, 4000)
    assert found.largest == int((10_000 - 20 * p - 6 * p) / 1000)
    assert found.memory == 20 * p + 6 * p + 4000
    assert found.sent == pytest.approx(2 * 4 * p * 15 / 16)  # what a ring sends, in float32
    assert found.communication_s == pytest.approx(2 * 4 * p * 15 / 16 / 100)
    assert found.compute_s == pytest.approx(3 * 0.5e9 * 4 / 0.5e12)
    assert found.apart_s == pytest.approx(found.compute_s + found.communication_s)
    assert found.overlapped_s == pytest.approx(max(found.compute_s, found.communication_s))
    assert found.critical_batch == pytest.approx(found.communication_s / (3 * 0.5e9 / 0.5e12))


def test_sharded_all_follows_from_closed_forms():
    cluster = Cluster(gpus=16, gpus_per_node=4, node_bandwidth=1000, network_bandwidth=100)
    found, p = step(small(), cluster, parallel=FullShard(), batch_size=64), 58
    part = 2 * (1 * 4 + 1) + 1 * 3  # one row of each
    assert found.parameters == part
    assert found.state == pytest.approx(20 * part)
    assert found.passing == 116 + 4 * 6 + 2 * 4 * 26 + 2 * 4 * 26
    assert found.sent == pytest.approx((2 * 4 * p + 4 * p) * 15 / 16)  # gathered twice, scattered once, in float32
    assert found.communication_s == pytest.approx(12 * p * 15 / 16 / 100)


def test_a_hybrid_gathers_in_the_node_and_adds_over_the_network():
    cluster = Cluster(gpus=16, gpus_per_node=4, node_bandwidth=1000, network_bandwidth=100)
    found, p = step(small(), cluster, parallel=HybridShard(group_size=4), batch_size=64), 58
    inside, across = 12 * p * 3 / 4, 2 * 4 * (p / 4) * 3 / 4
    assert found.parameters == 2 * (2 * 4 + 2) + 1 * 3
    assert found.sent == pytest.approx(inside + across)
    assert found.communication_s == pytest.approx(inside / 1000 + 4 * across / 100)  # four GPUs share the network


def test_within_one_node_the_network_does_not_matter(works):
    for way in (Replicate(), FullShard(), HybridShard()):
        fast, slow = (
            step(works["H/14"], Cluster(gpus=8, network_bandwidth=b), parallel=way, batch_size=512) for b in (370e9, 1)
        )
        assert fast == slow
        assert fast.communication_s == pytest.approx(fast.sent / 370e9)


def test_a_batch_that_does_not_fit_is_cut_into_equal_parts():
    cluster = Cluster(gpus=4, memory=5000)
    cut = step(small(), cluster, parallel=Replicate(), batch_size=48)
    assert (cut.largest, cut.images, cut.micro_batches, cut.activations) == (3, 12, 4, 3000)
    sharded, p = step(small(), cluster, parallel=FullShard(), batch_size=48), 58
    whole = step(small(), replace(cluster, memory=1e6), parallel=FullShard(), batch_size=48)
    assert (whole.micro_batches, sharded.micro_batches) == (1, 4)
    assert sharded.passing == whole.passing + 4 * p  # gradients that wait for the last part
    assert sharded.sent == pytest.approx(
        (sharded.micro_batches * 2 * 4 * p + 4 * p) * 3 / 4
    )  # gathered for each part, scattered once
    none = step(small(), replace(cluster, memory=1500), parallel=Replicate(), batch_size=48)
    assert (none.largest, none.micro_batches) == (0, 0)


# Llama 3's rate of failures, 1 s for a checkpoint, 180 s to restart: GPUs, hours between failures, interval, time lost.
FAILURES = [
    (8, 264 * 24, 6750, 0.0003),
    (64, 33 * 24, 2390, 0.0009),
    (512, 99, 844, 0.0029),
    (1024, 49.5, 597, 0.0044),
    (16_384, 3.1, 149, 0.030),
]


@pytest.mark.parametrize(("gpus", "hours", "interval", "share"), FAILURES)
def test_failures_cost_what_was_worked_out_by_hand(gpus, hours, interval, share):
    between = endurance(1.0, Cluster(gpus=gpus)).between_failures_s
    assert between / 3600 == pytest.approx(hours, rel=0.01)
    best = best_interval(1.0, between_failures_s=between)
    assert best == pytest.approx(interval, rel=0.003)
    assert lost(1.0, interval_s=best, between_failures_s=between, restart_s=180) == pytest.approx(
        share, abs=5e-5, rel=0.02
    )


@pytest.mark.parametrize(("checkpoint_s", "between_s"), [(0.1, 1e4), (5.0, 1e6)])
def test_no_other_interval_loses_less(checkpoint_s, between_s):
    def share(interval_s: float) -> float:
        return lost(checkpoint_s, interval_s=interval_s, between_failures_s=between_s, restart_s=60)

    best = best_interval(checkpoint_s, between_failures_s=between_s)
    assert all(share(best) < share(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


# By hand, from products alone: GFLOPs forward, images/s of a GPU (blocks computed again), GB of state, ms to send over
# eight ports and over one, images a GPU for which that takes as long as to compute, kB of files a ms and image size.
STEPS = {
    "L/16": (123, 1208, 906, 4.9, 7, 54, 8, 65, 133),
    "H/14": (334, 444, 333, 10.1, 14, 112, 6, 50, 49),
    "g/14": (534, 278, 208, 16.2, 22, 180, 6, 50, 31),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_cost_what_was_worked_out_by_hand(name, works):
    gflops, rate, again_rate, state, eight_ms, one_ms, eight_critical, one_critical, data = STEPS[name]
    found: dict[str, Step] = {}
    for ports, bandwidth in zip(("eight", "one"), NETWORKS.values()):
        cluster = Cluster(gpus=MANY, node_bandwidth=math.inf, network_bandwidth=bandwidth)
        for way in (Replicate(), FullShard(), HybridShard()):
            found[ports] = step(works[name], cluster, parallel=way, batch_size=64 * MANY)
            again = step(works[name], cluster, parallel=way, batch_size=64 * MANY, recompute=True)
            assert found[ports].images / found[ports].compute_s == pytest.approx(rate, rel=0.005)
            assert again.images / again.compute_s == pytest.approx(again_rate, rel=0.005)
    assert works[name].gflops == pytest.approx(gflops, abs=0.6)
    assert works[name].checkpoint / 1e9 == pytest.approx(state, abs=0.05)
    assert found["eight"].communication_s * 1e3 == pytest.approx(eight_ms, abs=0.5)
    assert found["one"].communication_s * 1e3 == pytest.approx(one_ms, abs=0.5)
    assert found["eight"].critical_batch == pytest.approx(eight_critical, abs=0.5)
    assert found["one"].critical_batch == pytest.approx(one_critical, abs=0.5)
    assert rate * 110e3 / 1e6 == pytest.approx(data, abs=0.5)


def test_more_of_one_thing_means_more_or_less_of_another(works):
    def at(**changes) -> Step:
        given = {"gpus": 64, "parallel": FullShard(), "batch_size": 4096, "name": "H/14", **changes}
        cluster = Cluster(gpus=given["gpus"], network_bandwidth=given.get("bandwidth", 370e9))
        recompute = given.get("recompute", False)
        work, batch = works[given["name"]], given["batch_size"]
        return step(work, cluster, parallel=given["parallel"], batch_size=batch, recompute=recompute)

    sizes = [at(gpus=n).state for n in (8, 16, 64, 512)]
    assert sizes == sorted(sizes, reverse=True)
    assert at().state < at(parallel=HybridShard()).state < at(parallel=Replicate()).state
    assert at(parallel=HybridShard(group_size=64)).state == at().state
    assert at(recompute=True).memory < at().memory
    assert at(recompute=True).compute_s == pytest.approx(at().compute_s * 4 / 3)
    assert at(bandwidth=45e9).communication_s == pytest.approx(at().communication_s * 370 / 45)
    assert at(batch_size=8192).critical_batch == pytest.approx(at().critical_batch)
    names = [at(name=name).memory for name in ("L/16", "H/14", "g/14")]
    assert names == sorted(names)
    assert all(at(gpus=n).apart_s >= at(gpus=n).overlapped_s > 0 for n in (8, 64, 512, 4096))
    failing = [endurance(1e10, Cluster(gpus=n)) for n in (8, 64, 512, 4096)]
    assert [e.interval_s for e in failing] == sorted((e.interval_s for e in failing), reverse=True)
    assert [e.lost for e in failing] == sorted(e.lost for e in failing)
    assert all(e.sharded_s <= e.single_s for e in failing)


TRACKED = """
import json, sys
import torch
import torch.nn.functional as F
from torch.distributed._tools.mem_tracker import MemTracker
from references import tiny
from vitreous.budget import plain_classifier
from vitreous.parallel import compute_again

def image(recompute):
    peaks = []
    for batch_size in (8, 16):
        classifier = plain_classifier(tiny(depth=8, width=64, num_heads=2, mlp_dim=256, image_size=64)).build()
        images = torch.rand(batch_size, 3, 64, 64)
        if recompute:
            compute_again(classifier)
        tracker = MemTracker()
        tracker.track_external(classifier, images)
        with tracker:
            F.cross_entropy(classifier(images), torch.zeros(batch_size, dtype=torch.long)).backward()
        peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    return (peaks[1] - peaks[0]) / 8 - 3 * 64 * 64 * 4

print(json.dumps([image(False), image(True)]))
"""


def test_torchs_tracker_finds_the_activations_of_an_image():
    """On the CPU in float32; the images themselves are subtracted. It starts threads, so it has its own process."""
    config = plain_classifier(tiny(depth=8, width=64, num_heads=2, mlp_dim=256, image_size=64))
    said = work(config, optimizer=AdamW(), dtype=torch.float32)
    known = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    done = subprocess.run([sys.executable, "-c", TRACKED], env=known, capture_output=True, text=True, check=True)
    plain, again = json.loads(done.stdout)
    assert plain == pytest.approx(said.activations, rel=0.01)
    assert again == pytest.approx(said.recomputed, rel=0.15)


@pytest.fixture
def fake_world():
    """Process 0 of many, which are not there: nothing is sent, nothing is added."""
    worlds = []

    def start(size: int) -> World:
        dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
        worlds.append(size)
        return World(rank=0, size=size, device=torch.device("cpu"), dtype=torch.bfloat16, threads=1)

    yield start
    if worlds:
        dist.destroy_process_group()


@pytest.mark.parametrize(("parallel", "shards"), [(FullShard(), 64), (HybridShard(group_size=8), 8)])
def test_64_processes_hold_of_a_huge_model_what_was_said(parallel, shards, fake_world, works):
    with torch.device("meta"):
        classifier = plain_classifier(encoder("H/14")).build()
    placed = parallel.place(classifier, fake_world(64), in_order=False)
    mine = sum(local(parameter).numel() for parameter in classifier.parameters())
    assert mine == held(works["H/14"].groups, shards=shards)
    assert mine == step(works["H/14"], Cluster(gpus=64), parallel=parallel, batch_size=64).parameters
    assert mine == pytest.approx(works["H/14"].parameters / shards, rel=0.002)
    assert mine >= works["H/14"].parameters / shards
    assert placed.copies == 64 // shards


def test_one_shard_is_the_whole(works):
    assert held(works["g/14"].groups, shards=1) == works["g/14"].parameters == 1_012_611_432


def shown(page: str) -> list[tuple[list[str], str]]:
    """Commands of the page with what stands under them."""
    pairs = re.findall(r"^```sh\nvitreous (budget [^\n]*)\n```\n\n```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [(shlex.split(command), text) for command, text in pairs]


def test_the_page_shows_what_its_commands_print(vitreous):
    found = shown(PAGE.read_text("utf-8"))
    assert [words[1] for words, _ in found] == ["L/16", "H/14", "g/14"]
    for words, text in found:
        assert words[2:] == ["--gpus", "8", "64", "512"]
        assert vitreous(*words).out == text


def test_people_and_machines_are_told_the_same_in_seconds(vitreous):
    began = time.process_time()
    said = json.loads(vitreous("budget", "g/14", "--gpus", "8", "64", "--json").out)
    assert time.process_time() - began < 10
    assert (said["name"], [row["gpus"] for row in said["clusters"]]) == ("g/14", [8, 64])
    assert len(said["clusters"][0]["steps"]) == 2 * 3 * 2
    one = next(s for s in said["clusters"][1]["steps"] if s["network"] == "400 Gb/s" and s["parallel"] == "FullShard")
    text = vitreous("budget", "g/14", "--gpus", "64").out
    for number in (
        f"{one['memory'] / 1e9:,.1f}",
        f"{1e3 * one['communication_s']:,.1f}",
        f"{one['critical_batch']:,.1f}",
    ):
        assert number in text


def test_options_change_what_is_assumed(vitreous):
    def first(*options: str) -> dict:
        said = json.loads(vitreous("budget", "32x2/8", "--gpus", "8", *options, "--json").out)
        return {**said["clusters"][0], **said["clusters"][0]["steps"][0]}

    plain = first()
    assert first("--tflops", "44.505")["compute_s"] == pytest.approx(10 * plain["compute_s"])
    assert first("--memory", "1")["largest"] == pytest.approx(plain["largest"] * 2**30 / 80e9, rel=0.01)
    assert first("--batch-size", "8")["images"] == 1
    assert first("--optimizer", "sgd")["state"] == pytest.approx(plain["state"] * 16 / 20, rel=0.001)
    assert first("--precision", "float32")["passing"] < plain["passing"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("H/14", "--gpus", "7"), "4,096 images do not divide among 7 GPUs; take a batch of 4,095"),
        (("H/14", "--gpus", "12", "--batch-size", "48"), "12 GPUs do not divide into groups of 8"),
        (("H/14", "--gpus", "0"), "--gpus must be more than 0"),
        (("H/14", "--gpus", "8.5"), "unable to convert"),
        (("H/14", "--gpus", "8", "--images", "1e9"), "leave out --images"),
        (("R50x1", "--gpus", "8"), "for a ViT"),
    ],
)
def test_it_says_what_it_cannot_use(words, complaint, vitreous):
    answer = vitreous("budget", *words)
    assert answer.code == 2
    assert complaint in answer.err
    assert answer.err.count("\n") == 1


def test_a_resnet_is_refused_in_python_too():
    with pytest.raises(InputError, match="for a ViT"):
        work(plain_classifier(ResNetConfig()), optimizer=AdamW())
