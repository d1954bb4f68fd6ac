import warnings

import pytest
import torch
import torch._dynamo

from processes import in_processes
from test_training import pictures, tiny
from vitreous import distributed
from vitreous.close_up import Part, Shown, class_scores, images_of, parts_of
from vitreous.diagnosis import watched
from vitreous.parallel import FullShard, HybridShard, Parallel, Replicate
from vitreous.saved import Holding
from vitreous.trainee import Trainee

STEP = 3
HEAD = torch.linspace(-1, 1, 96).view(3, 32)


def seen(parallel: Parallel, *, processes: int) -> tuple[list[Part], list[Shown]]:
    """What a step of four micro-batches looks like from near, the same in every process."""

    def work() -> tuple[list[Part], list[Shown]]:
        warnings.simplefilter("error")
        world = distributed.start(device="cpu", threads=1, precision="float32", timeout_s=60)
        trainee = Trainee(tiny(parallel=parallel, num_micro_batches=4), world, num_classes=3)
        head = Holding.of(trainee.objective.get_parameter("classifier.head.linear.weight"))
        head.local.copy_(HEAD[head.start : head.start + head.local.shape[0]])  # from zero, all images lose the same
        with class_scores(trainee.objective) as scores:
            watch, _ = watched(trainee, pictures(), step=STEP)
        found = parts_of(trainee, watch), images_of(trainee, watch, scores, pictures())
        world.leave()
        return found

    found = in_processes(processes, work)
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.mark.parametrize(
    ("parallel", "processes"), [(Replicate(), 2), (FullShard(), 4), (HybridShard(group_size=2), 4)]
)
def test_several_processes_see_together_what_one_sees_alone(parallel, processes):
    (parts, images), (alone_parts, alone_images) = (
        seen(parallel, processes=processes),
        seen(Replicate(), processes=1),
    )
    assert images == alone_images
    for one, other in zip(parts, alone_parts, strict=True):
        assert (one.name, one.output) == (other.name, other.output)
        assert (one.gradient, one.weights) == pytest.approx((other.gradient, other.weights), rel=1e-6)


def test_numbers_are_those_of_the_layers_themselves():
    parts, images = seen(Replicate(), processes=1)
    by_name = {part.name: part for part in parts}
    root = float(HEAD.double().square().sum() / 99) ** 0.5  # with three biases of 0
    assert by_name["classifier.head.linear"].weights == pytest.approx(root, rel=1e-6)
    assert by_name["classifier.encoder.position"].output is None  # nothing goes through it as through a layer
    assert len(images) == 16
    assert len({image.name for image in images}) == 16
