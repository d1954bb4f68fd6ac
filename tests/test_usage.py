from pathlib import Path

import pytest
import torch

from test_training import WORLD, carried_out, tiny
from vitreous.budget import computed_gflops, plain_classifier
from vitreous.run_folder import RunFolder
from vitreous.trainee import Trainee
from vitreous.usage import Usage, matmul_rate, peak_bytes

STATUS = Path("/proc/self/status")


def test_mfu_is_three_forward_passes_an_image_over_what_the_device_can_do():
    usage = Usage(Trainee(tiny(), WORLD, num_classes=3))
    gflops = computed_gflops(plain_classifier(tiny().model, num_classes=3), image_size=8)
    can = matmul_rate(WORLD.device, WORLD.dtype, torch.get_num_threads())
    assert usage.figures(100.0, shape=(8, 8))["mfu"] == pytest.approx(100 * 3 * gflops * 1e9 / can)


def test_the_arithmetic_is_that_of_the_size_seen_in_training():
    usage = Usage(Trainee(tiny(), WORLD, num_classes=3))
    large, small = (usage.figures(1.0, shape=(side, side))["mfu"] for side in (16, 8))
    assert 3 * small < large < 5 * small


def test_the_rate_is_measured_once_and_is_no_less_than_what_a_product_shows():
    rate = matmul_rate(torch.device("cpu"), torch.float32, torch.get_num_threads())
    assert 1e8 < rate < 1e15
    assert matmul_rate(torch.device("cpu"), torch.float32, torch.get_num_threads()) == rate


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux")
def test_memory_is_what_the_kernel_says_this_process_has_held_at_most():
    held = [line.split() for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    assert peak_bytes(torch.device("cpu")) == pytest.approx(1024 * int(held[0][1]), rel=0.02)


def test_every_line_of_training_says_it(tmp_path):
    carried_out(tiny(), tmp_path)
    lines = [line for line in RunFolder(tmp_path).measurements() if line.get("split") == "train"]
    assert all(line["peak_mb"] > 50 and 0 < line["mfu"] < 2 for line in lines)
    names = {"loss", "accuracy", "learning_rate", "grad_norm", "images_per_s", "data_wait", "peak_mb", "mfu", "seconds"}
    assert all(line.keys() >= names for line in lines)
