import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from digests import digest, timeless, whole
from processes import in_processes
from test_training import pictures, tiny
from vitreous import distributed
from vitreous.checkpoint import CheckpointConfig
from vitreous.console import Console
from vitreous.data.loader import training_batches
from vitreous.errors import InputError
from vitreous.objectives.supervised import Supervised
from vitreous.optim import SGD
from vitreous.parallel import FullShard, HybridShard, PairwiseSum, Parallel, Replicate, sum_in_order, units
from vitreous.pooling import Mean
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.stopping import Stopped
from vitreous.trainee import Trainee
from vitreous.training import Training
from vitreous.variants import vit

PARALLELS = [Replicate(), FullShard(), HybridShard(group_size=2)]


@dataclass
class Ended:
    """What a run in some processes came to, as process 0 saw it."""

    digest: str
    lines: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]


def carried_out(run: Run, path: Path, *, processes: int = 1, time_limit_s: float | None = None) -> Ended:
    """`run` in that many processes, until its end or the time limit; in every process it comes to the same."""

    def work() -> Ended:
        warnings.simplefilter("error")
        world = distributed.start(device="cpu", threads=1, precision=run.precision, timeout_s=60)
        data, folder = pictures(), RunFolder(path)
        world.on_main(lambda: path.mkdir(exist_ok=True))
        console = Console(quiet=True)
        training = Training(
            run, data, held_out=("test", data), folder=folder, world=world, console=console, fingerprint=""
        )
        with suppress(Stopped):
            training.carry_out(time_limit_s)
        tensors = training.trainee.tensors()
        ended = Ended(digest(tensors), timeless(folder.measurements()), {n: whole(t) for n, t in tensors.items()})
        world.leave()
        return ended

    ended = in_processes(processes, work)
    assert {e.digest for e in ended} == {ended[0].digest}
    return ended[0]


def small(**changes: Any) -> Run:
    return tiny(**{"steps": 4, "ema_decay": 0.9, "checkpoint": CheckpointConfig(every_s=0.0), **changes})


@pytest.mark.parametrize("processes", [2, 4])
def test_replicated_and_sharded_weights_come_to_the_same_bits(processes, tmp_path):
    ended = [
        carried_out(small(parallel=parallel), tmp_path / str(i), processes=processes)
        for i, parallel in enumerate(PARALLELS)
    ]
    assert ended[0].digest == ended[1].digest == ended[2].digest
    assert ended[0].lines == ended[1].lines == ended[2].lines


@pytest.mark.parametrize("optimizer", [small().optimizer, SGD()], ids=["adamw", "sgd"])
def test_an_exact_run_has_the_same_bits_in_any_number_of_processes(optimizer, tmp_path):
    run = small(exact=True, num_micro_batches=4, optimizer=optimizer)
    alone = carried_out(run, tmp_path / "1")
    for processes in (2, 4):
        for parallel in (Replicate(), FullShard()):
            path = tmp_path / f"{processes} {type(parallel).__name__}"
            ended = carried_out(replace(run, parallel=parallel), path, processes=processes)
            assert ended.digest == alone.digest
            assert ended.lines == alone.lines


def test_an_exact_run_may_change_its_processes_as_it_goes(tmp_path):
    run = small(exact=True, num_micro_batches=4, steps=8)
    undisturbed = carried_out(run, tmp_path / "whole")
    stops: list[tuple[int, Parallel]] = [
        (1, Replicate()),
        (2, FullShard()),
        (1, Replicate()),
        (4, HybridShard(group_size=2)),
        (4, FullShard()),
        (2, Replicate()),
    ]
    for processes, parallel in stops:  # a step each: the time is up at once; with several, two
        carried_out(replace(run, parallel=parallel), tmp_path / "parts", processes=processes, time_limit_s=0.0)
    ended = carried_out(run, tmp_path / "parts")
    assert ended.digest == undisturbed.digest
    assert ended.lines == undisturbed.lines


@pytest.mark.parametrize(("precision", "most"), [("float64", 1e-12), ("float32", 1e-6)])
def test_two_halves_of_a_batch_cost_what_the_batch_costs(precision, most, tmp_path):
    run = small(steps=6, batch_size=32, precision=precision, model=vit("32x2/4", image_size=8))
    alone = carried_out(run, tmp_path / "1")
    for processes, parallel in ((2, Replicate()), (4, FullShard())):
        path = tmp_path / f"{processes}"
        shared = carried_out(replace(run, parallel=parallel), path, processes=processes)
        for ours, theirs in zip(alone.lines, shared.lines, strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=most)
        if precision == "float64":
            for name, tensor in alone.tensors.items():
                torch.testing.assert_close(shared.tensors[name], tensor, rtol=1e-11, atol=1e-11)


def test_accumulated_micro_batches_cost_what_the_batch_costs(tmp_path):
    run = small(steps=4, precision="float64", model=vit("32x2/4", image_size=8))
    alone = carried_out(run, tmp_path / "1")
    accumulated = carried_out(replace(run, num_micro_batches=4), tmp_path / "2")
    both = carried_out(replace(run, num_micro_batches=8, parallel=FullShard()), tmp_path / "3", processes=2)
    for line, other, third in zip(alone.lines, accumulated.lines, both.lines, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-12)
        assert third["loss"] == pytest.approx(line["loss"], rel=1e-12)


LAYOUTS = [(1, Replicate()), (2, Replicate()), (2, FullShard()), (4, HybridShard(group_size=2))]


def test_a_checkpoint_is_read_by_other_processes_bit_for_bit(tmp_path):
    run, saved = small(num_micro_batches=4), {}
    for i, (processes, parallel) in enumerate(LAYOUTS):
        path = tmp_path / str(i)
        changed = replace(run, parallel=parallel)
        saved[path] = carried_out(changed, path, processes=processes, time_limit_s=0.0).digest
        files = {file.name for file in next((path / "checkpoints").glob("step-*")).iterdir()}
        assert len(files) == processes + 1  # each process wrote its part
    for processes, parallel in LAYOUTS:

        def work(parallel: Parallel = parallel) -> dict[Path, str]:
            warnings.simplefilter("error")
            world, data, read = distributed.start(device="cpu", threads=1), pictures(), {}
            for path in saved:
                again = Training(
                    replace(run, parallel=parallel),
                    data,
                    held_out=("test", data),
                    folder=RunFolder(path),
                    world=world,
                    console=Console(quiet=True),
                    fingerprint="",
                )
                again.restore()
                read[path] = digest(again.trainee.tensors())
            world.leave()
            return read

        for read in in_processes(processes, work):
            assert read == saved


def test_a_sharded_run_gives_a_whole_model(tmp_path):
    def work() -> dict[str, torch.Tensor]:
        world = distributed.start(device="cpu", threads=1)
        data, run = pictures(), small(parallel=FullShard())
        training = Training(
            run,
            data,
            held_out=("test", data),
            folder=RunFolder(tmp_path),
            world=world,
            console=Console(quiet=True),
            fingerprint="",
        )
        return dict(training.carry_out(None).state_dict())

    tmp_path.mkdir(exist_ok=True)
    ended = carried_out(small(), tmp_path / "replicated", processes=2)
    for model in in_processes(2, work):
        assert type(next(iter(model.values()))) is torch.Tensor
        for name, tensor in model.items():
            assert torch.equal(tensor, ended.tensors[f"average/{name}"])


@pytest.mark.parametrize("parallel", [Replicate(), FullShard()])
def test_blocks_that_are_computed_again_give_the_same_bits(parallel, tmp_path):
    run = small(parallel=parallel)
    plain = carried_out(run, tmp_path / "plain", processes=2)
    again = carried_out(replace(run, activation_checkpointing=True), tmp_path / "again", processes=2)
    assert plain.digest == again.digest


@pytest.mark.parametrize("processes", [1, 2])
def test_bfloat16_keeps_weights_and_sums_in_float32(processes, tmp_path):
    run = small(precision="bfloat16")
    replicated = carried_out(run, tmp_path / "ddp", processes=processes)
    sharded = carried_out(replace(run, parallel=FullShard()), tmp_path / "fsdp", processes=processes)
    assert {tensor.dtype for tensor in replicated.tensors.values()} == {torch.float32}
    assert {tensor.dtype for tensor in sharded.tensors.values()} == {torch.float32}
    float32 = carried_out(replace(run, precision="float32"), tmp_path / "float32", processes=processes)
    for ended in (replicated, sharded):
        assert ended.digest != float32.digest
        assert ended.lines[-1]["loss"] == pytest.approx(float32.lines[-1]["loss"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [Replicate(), FullShard()])
def test_compiled_blocks_cost_what_others_cost(parallel, tmp_path):
    run = small(model=vit("32x2/4", image_size=8), parallel=parallel)
    plain = carried_out(run, tmp_path / "plain", processes=2)
    compiled = carried_out(replace(run, compile=True), tmp_path / "compiled", processes=2)
    for ours, theirs in zip(plain.lines, compiled.lines, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)


def test_parts_are_added_in_pairs():
    parts = torch.randn(8, 5)
    a, b, c, d, e, f, g, h = parts
    assert torch.equal(sum_in_order(parts), ((a + b) + (c + d)) + ((e + f) + (g + h)))
    assert torch.equal(sum_in_order(parts[:3]), (a + b) + c)
    tree = PairwiseSum()
    for part in parts:
        tree.add([part.clone()])
    assert torch.equal(tree.total()[0], sum_in_order(parts))


def test_the_order_of_addition_matters_or_there_would_be_nothing_to_fix():
    parts = torch.randn(8, 1000)
    assert not torch.equal(sum_in_order(parts), sum_in_order(parts[[0, 2, 4, 6, 1, 3, 5, 7]]))


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({"num_micro_batches": 4}, 3, "3 processes cannot share 4 micro-batches equally"),
        ({}, 3, "batch_size 16 cannot be cut into 3 equal parts"),
        ({"num_micro_batches": 4, "exact": True}, 8, "8 processes cannot share 4 micro-batches"),
    ],
)
def test_processes_that_do_not_fit_are_refused(changes, processes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes).micro_batches(processes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact": True}, "exact needs num_micro_batches, a power of two"),
        ({"exact": True, "num_micro_batches": 3, "batch_size": 9}, "exact needs num_micro_batches, a power of two"),
        ({"num_micro_batches": 5}, "batch_size 16 cannot be cut into 5 equal parts"),
        ({"num_micro_batches": 0}, "num_micro_batches is 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)
def test_a_batch_that_cannot_be_cut_so_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


def test_groups_that_do_not_fit_are_refused(tmp_path):
    def work() -> str:
        world = distributed.start(device="cpu", threads=1)
        with pytest.raises(InputError, match=r"2 processes do not divide into groups of 3"):
            HybridShard(group_size=3).place(torch.nn.Linear(2, 2), world, in_order=True)
        world.share(0)  # or one ends while the other still comes
        return "refused"

    assert in_processes(2, work) == ["refused"] * 2


def test_the_blocks_of_a_vit_are_its_units():
    assert len(units(vit("32x3/4", image_size=8).build())) == 3


def test_a_model_without_class_token_is_sharded_too(tmp_path):
    run = small(model=vit("32x2/4", image_size=8, class_token=False), objective=Supervised(pooling=Mean()))
    alone = carried_out(replace(run, num_micro_batches=2, exact=True), tmp_path / "1")
    sharded = replace(run, num_micro_batches=2, exact=True, parallel=FullShard())
    assert carried_out(sharded, tmp_path / "2", processes=2).digest == alone.digest


def test_bfloat16_tokens_between_blocks_are_float32_however_weights_lie(tmp_path):
    def work() -> set[torch.dtype]:
        world = distributed.start(device="cpu", threads=1, precision="bfloat16")
        seen = set()
        for parallel in (Replicate(), FullShard()):
            trainee = Trainee(small(parallel=parallel), world, num_classes=3)
            block = trainee.objective.classifier.encoder.blocks[1]
            block.register_forward_hook(lambda _, inputs, out: seen.update((inputs[0].dtype, out.dtype)))
            batches = training_batches(
                pictures(),
                trainee.run.train_view,
                batch_size=16,
                seed=0,
                first_step=0,
                steps=1,
                num_micro_batches=2,
                mine=trainee.mine,
            )
            trainee.take(0, batches)
        world.leave()
        return seen

    assert in_processes(2, work) == [{torch.float32}] * 2


def test_groups_hear_of_lost_processes_as_soon_as_all(tmp_path):
    def work() -> list[float]:
        world = distributed.start(device="cpu", threads=1, timeout_s=7)
        placed = HybridShard(group_size=2).place(vit("32x2/4", image_size=8).build(), world, in_order=False)
        found = placed.shard_group._get_backend(world.device).options._timeout.total_seconds()
        world.leave()
        return [found]

    assert in_processes(4, work) == [[7.0]] * 4


def test_one_process_needs_no_group():
    world = distributed.start(device="cpu", threads=1)
    assert HybridShard(group_size=8).place(torch.nn.Linear(2, 2), world, in_order=True).copies == 1
