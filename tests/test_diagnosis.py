import math
import warnings

import pytest
import torch

from injection import IMAGE, PLACES, Fault, inject
from processes import in_processes
from test_training import WORLD, pictures, tiny
from vitreous import distributed
from vitreous.data.loader import training_batches
from vitreous.data.source import Source
from vitreous.diagnosis import Cause, diagnose, watched
from vitreous.distributed import World
from vitreous.errors import some
from vitreous.optim import AdamW
from vitreous.parallel import FullShard, Parallel, Replicate, local
from vitreous.run import Run
from vitreous.trainee import Trainee

STEP = 3
BLOCK = "classifier.encoder.blocks.1"


def shown(run: Run, source: Source, *, part: int, parts: int) -> list[str]:
    """What the images of a micro-batch of the step are called in messages."""
    (batch,) = training_batches(
        source,
        run.train_view,
        batch_size=run.batch_size,
        num_micro_batches=parts,
        mine=range(part, part + 1),
        seed=run.seed,
        first_step=STEP,
        steps=STEP + 1,
    )
    return [f"{source.name(i)} ({i})" for i in batch.index.tolist()]


def diagnosed(run: Run, world: World, fault: Fault) -> Cause:
    trainee = Trainee(run, world, num_classes=3)
    with torch.no_grad():  # a head of zeros would let no gradient through
        for parameter in trainee.objective.parameters():
            local(parameter.detach()).add_(0.02)
    before = {name: local(tensor.detach()).clone() for name, tensor in trainee.tensors().items()}
    with pytest.MonkeyPatch.context() as patch:
        inject(fault, patch)
        found = diagnose(trainee, pictures(), step=STEP)
    assert all(torch.equal(before[name], local(tensor.detach())) for name, tensor in trainee.tensors().items())
    assert all(parameter.grad is None for parameter in trainee.objective.parameters())
    return found


def expected(place: str, images: list[str]) -> tuple[str, str]:
    """Kind and text for NaN at a place, in a micro-batch of these images."""
    one, all_of_them = f"image {images[IMAGE]}", f"{len(images)} images {some(images, most=3)}"
    return {
        "data": ("output", f"classifier.encoder.stem is the first layer that gives NaN, for {one}"),
        "weight": ("output", f"{BLOCK}.attention.qkv is the first layer that gives NaN, for {all_of_them}"),
        "layer": ("output", f"{BLOCK} is the first layer that gives NaN, for {one}"),
        "loss": ("loss", f"every layer gives finite numbers, the loss does not, for {all_of_them}"),
        "gradient": (
            "gradient",
            f"the loss is finite, the gradient that comes back to the output of {BLOCK} has NaN, for {one}",
        ),
    }[place]


@pytest.mark.parametrize("place", PLACES)
def test_the_first_layer_and_the_images_are_named(place):
    found = diagnosed(tiny(), WORLD, Fault(place, steps=(STEP + 1,)))
    assert (found.kind, found.text) == expected(place, shown(tiny(), pictures(), part=0, parts=1))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("parallel", [Replicate(), FullShard()], ids=["replicate", "shard"])
def test_of_several_processes_the_one_that_met_it_first_is_named(parallel: Parallel, rank):
    run = tiny(parallel=parallel, num_micro_batches=4)
    places = [place for place in PLACES if parallel == Replicate() or place != "weight"]  # a shard is of all

    def work() -> list[Cause]:
        warnings.simplefilter("error")
        world = distributed.start(device="cpu", threads=1, precision="float32", timeout_s=60)
        found = [diagnosed(run, world, Fault(place, steps=(STEP + 1,), rank=rank)) for place in places]
        world.leave()
        return found

    first, second = in_processes(2, work)
    assert first == second
    for place, found in zip(places, first, strict=True):
        parts = [shown(run, pictures(), part=part, parts=4) for part in (rank, rank + 2)]
        kind, text = expected(place, parts[0])
        if place == "loss":
            both = some([*parts[0], *parts[1]], most=3)
            text = f"every layer gives finite numbers, the loss does not, for 8 images {both}"
        assert (found.kind, found.text) == (kind, f"{text} (process {rank})")


def test_a_part_of_a_weight_that_broke_in_one_process_is_found_by_all():
    def work() -> Cause:
        world = distributed.start(device="cpu", threads=1, precision="float32", timeout_s=60)
        trainee = Trainee(tiny(parallel=FullShard()), world, num_classes=3)
        if world.rank == 1:
            local(trainee.objective.get_parameter(f"{BLOCK}.mlp.up.weight").detach())[0, 0] = math.inf
        found = diagnose(trainee, pictures(), step=STEP)
        world.leave()
        return found

    text = f"the weights {BLOCK}.mlp.up.weight hold some that are not finite (process 1)"
    assert in_processes(2, work) == [Cause("weight", text)] * 2


def test_a_weight_whose_own_gradient_breaks_is_named():
    trainee = Trainee(tiny(), WORLD, num_classes=3)
    name = "classifier.head.linear.bias"
    trainee.objective.get_parameter(name).register_hook(lambda gradient: gradient / 0)
    found = diagnose(trainee, pictures(), step=STEP)
    assert found.kind == "gradient"
    assert f"comes back to the weights {name} has an infinity, for 16 images" in found.text


def test_a_gradient_too_large_for_its_norm_is_no_fault_of_the_machine():
    trainee = Trainee(tiny(optimizer=AdamW(clip_norm=None)), WORLD, num_classes=3)
    trainee.objective.register_forward_hook(lambda module, inputs, loss: setattr(loss, "total", loss.total * 1e22))
    found = diagnose(trainee, pictures(), step=STEP)
    assert found.kind == "norm"
    assert "the gradient is finite but its norm is not" in found.text
    taken = trainee.take(
        STEP,
        training_batches(pictures(), tiny().train_view, batch_size=16, seed=0, first_step=STEP, steps=STEP + 1),
    )
    assert taken.skipped == 1
    assert torch.isfinite(taken.numbers).all()


def test_what_does_not_happen_again_is_said():
    found = diagnose(Trainee(tiny(), WORLD, num_classes=3), pictures(), step=STEP)
    assert (found.kind, "the machine may be faulty" in found.text) == ("nothing", True)


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}, {"exact": True, "num_micro_batches": 4}])
def test_watching_changes_no_bit_of_the_gradient(changes):
    run = tiny(**changes)
    trainee = Trainee(run, WORLD, num_classes=3)
    batches = training_batches(
        pictures(),
        run.train_view,
        batch_size=16,
        num_micro_batches=trainee.num_micro_batches,
        mine=trainee.mine,
        seed=0,
        first_step=STEP,
        steps=STEP + 1,
    )
    _, plain = trainee.gradients(STEP, STEP / run.steps, batches)
    gradients = {name: p.grad.clone() for name, p in trainee.objective.named_parameters() if p.grad is not None}
    trainee.forget_gradients()
    watch, numbers = watched(trainee, pictures(), step=STEP)
    assert torch.equal(plain, numbers)
    assert all(torch.equal(gradients[name], trainee.objective.get_parameter(name).grad) for name in gradients)
    assert [len(batch.index) for batch in watch.shown] == [16 // trainee.num_micro_batches] * trainee.num_micro_batches


def test_the_largest_output_is_that_of_all_micro_batches():
    trainee = Trainee(tiny(num_micro_batches=2), WORLD, num_classes=3)
    seen = []
    block = trainee.objective.get_submodule(BLOCK)
    handle = block.register_forward_hook(lambda module, inputs, out: seen.append(float(out.detach().abs().max())))
    watch, _ = watched(trainee, pictures(), step=STEP)
    handle.remove()
    assert len(seen) == 2
    assert watch.largest[BLOCK] == max(seen)
