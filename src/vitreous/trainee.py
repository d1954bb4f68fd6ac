"""What a run changes, and how one step changes it: a pure function of the state, the images and the step."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitreous.averaging import Average
from vitreous.data.batch import Batch
from vitreous.data.loader import training_batches
from vitreous.data.source import Source
from vitreous.distributed import World
from vitreous.guard import Guard
from vitreous.objectives.base import Objective
from vitreous.parallel import PairwiseSum, Placed, compute_again, local, units
from vitreous.run import Run
from vitreous.saved import Saved
from vitreous.seeding import key
from vitreous.weights.open import open_model

DEAF = {"mps"}
"""Devices whose fused optimizers do not look at `found_inf`: there a step waits for its own numbers."""


@dataclass(frozen=True)
class Taken:
    """One step: its numbers, still on the device."""

    step: int
    names: tuple[str, ...]
    numbers: Float[Tensor, "micro_batch name"]
    """What the objective says of each micro-batch of this process: the loss, then its parts."""
    grad_norm: Float[Tensor, ""]
    """Of the whole gradient, before clipping."""
    skipped: Float[Tensor, ""]
    """1 if the numbers were not finite and nothing was changed."""


def build_objective(run: Run, *, num_classes: int) -> Objective:
    """The objective at step 0: weights drawn from the run's seed, the encoder's from `run.weights` if given.

    Raises:
        InputError: if there are no such weights, or they do not fit.
    """
    torch.manual_seed(key(run.seed, "initialise"))
    objective = run.objective.build(run.model, num_classes=num_classes)
    if run.weights is not None:
        objective.start_from(open_model(run.weights))
    return objective


class Trainee:
    """The objective, its optimizer, and the average of its weights, spread over the processes."""

    def __init__(self, run: Run, world: World, *, num_classes: int) -> None:
        self.run, self.world, self.num_classes = run, world, num_classes
        self.objective = objective = build_objective(run, num_classes=num_classes)
        self.num_micro_batches = run.micro_batches(world.size)
        if world.dtype == torch.float64:
            objective.double()
        if run.activation_checkpointing:
            compute_again(objective)
        if run.compile:
            for unit in units(objective):
                unit.compile()
        in_order = run.exact or world.device.type == "cpu"
        self.placed: Placed = run.parallel.place(objective, world, in_order=in_order)
        self.parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.own = {name: nn.Parameter(local(p.detach())) for name, p in self.parameters.items()}
        """What of each parameter lies in this process: optimizers know nothing of sharding."""
        self.optimizer = run.optimizer.build(self.own)
        self.average = None if run.ema_decay is None else Average(objective, run.ema_decay)
        self.guard = Guard(world.device, run.max_skipped_steps)

    @property
    def mine(self) -> range:
        """The micro-batches of this process."""
        return range(self.world.rank, self.num_micro_batches, self.world.size)

    def batches(self, source: Source, *, first_step: int, steps: int, num_workers: int = 0) -> Iterator[Batch]:
        """The micro-batches of this process in steps `first_step` to `steps` - 1."""
        run = self.run
        return training_batches(
            source,
            run.train_view,
            batch_size=run.batch_size // run.num_repeats,
            num_micro_batches=self.num_micro_batches,
            mine=self.mine,
            num_repeats=run.num_repeats,
            shares=run.data.shares,
            shape_at=run.shape_at if run.grow_from < 1 else None,
            seed=run.seed,
            first_step=first_step,
            steps=steps,
            num_workers=num_workers,
            device=self.world.device,
        )

    def take(self, step: int, batches: Iterator[Batch]) -> Taken:
        """Take step number `step`, on this process' next micro-batches."""
        progress = step / self.run.steps
        self.objective.train()
        self.run.optimizer.set_rate(self.optimizer, self.run.learning_rate, progress)
        names, numbers = self.gradients(step, progress, batches)
        norm = self._clipped_norm()
        loss = self.world.sum(numbers[:, 0].sum())
        skipped = self.guard.refuses(loss, norm)
        optimizer: Any = self.optimizer
        optimizer.found_inf, optimizer.grad_scale = skipped, None  # fused optimizers look at them on the device
        for name, parameter in self.parameters.items():
            self.own[name].data = local(parameter.detach())
            self.own[name].grad = None if parameter.grad is None else local(parameter.grad)
        deaf = self.world.device.type in DEAF or not self.run.optimizer.heeds_found_inf
        if not deaf or not float(skipped):
            self.optimizer.step()
        self.forget_gradients()
        if self.average is not None:
            self.average.update(skipped)
        self.objective.after_step(progress)
        return Taken(step, names, numbers, norm, skipped)

    def gradients(
        self, step: int, progress: float, batches: Iterator[Batch]
    ) -> tuple[tuple[str, ...], Float[Tensor, "micro_batch name"]]:
        """Leave the gradient of the mean over all micro-batches in the parameters."""
        tree = PairwiseSum() if self.run.exact and len(self.mine) > 1 else None
        names, rows = (), []
        for part, batch in zip(self.mine, batches):
            last = part == self.mine[-1]
            torch.manual_seed(key(self.run.seed, "step", step, part))
            with nullcontext() if last or tree is not None else self.placed.alone():
                with self.world.autocast():
                    loss = self.placed.module(self._typed(batch), progress)
                (loss.total / self.num_micro_batches).backward()
            names = ("loss", *loss.parts)
            rows.append(torch.stack([loss.total.detach(), *loss.parts.values()]))
            if tree is not None:
                gradients = self._local_gradients()
                tree.add(gradients)
                if last:
                    torch._foreach_copy_(gradients, tree.total())
                else:
                    self.forget_gradients()
        return names, torch.stack(rows)

    def _typed(self, batch: Batch) -> Batch:
        return replace(batch, images=batch.images.double()) if self.world.dtype == torch.float64 else batch

    def _local_gradients(self) -> list[Tensor]:
        return [local(p.grad) for p in self.parameters.values() if p.grad is not None]

    def forget_gradients(self) -> None:
        """Free what the last backward pass has left."""
        self.objective.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _clipped_norm(self) -> Float[Tensor, ""]:
        """The global norm of the gradient, which is then scaled down if it is above the limit."""
        gradients = self._local_gradients()
        # in float64, sums over parts of tensors round to the same float32 however tensors are divided
        fine = (self.world.size > 1 or self.run.exact) and self.world.device.type != "mps"
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float64 if fine else None)
        squared = torch.stack(norms).square().sum()
        if self.placed.shard_group is not None:
            dist.all_reduce(squared, group=self.placed.shard_group)
        norm = squared.sqrt().float().to(gradients[0].dtype)
        if self.run.optimizer.clip_norm is not None:
            torch._foreach_mul_(gradients, (self.run.optimizer.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """All of the state that is tensors: weights, moments of the optimizer, the average."""
        named = {f"weights/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for name, parameter in self.parameters.items():
            for moment, tensor in self.optimizer.state.get(self.own[name], {}).items():
                named[f"optimizer/{name}/{moment}"] = _laid_out(tensor, parameter)
        if self.average is not None:
            named |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        return named

    def restore(self, saved: Saved) -> None:
        """Take over what `saved` holds.

        Raises:
            InputError: if it holds the state of another model or optimizer.
        """
        for path, (dtype, shape) in saved.shapes.items():
            kind, _, name = path.partition("/")
            name, _, moment = name.rpartition("/")
            if kind == "optimizer" and name in self.own:
                own = self.own[name].detach()
                same = shape == tuple(self.parameters[name].shape)
                place = {"dtype": dtype, "device": own.device}
                empty = torch.zeros_like(own, **place) if same else torch.zeros(shape, **place)
                self.optimizer.state[self.own[name]][moment] = empty
        saved.load(self.tensors())

    def whole(self) -> Objective:
        """The objective that training gives, with all of its weights: their average, if there is one."""
        if self.average is not None:
            with torch.no_grad():
                for name, parameter in self.average.parameters.items():
                    local(parameter).copy_(local(self.average.tensors[name]))
        state = self.objective.state_dict()
        if not any(isinstance(tensor, DTensor) for tensor in state.values()):
            return self.objective
        gathered = {n: t.full_tensor().cpu() if isinstance(t, DTensor) else t.cpu() for n, t in state.items()}
        objective = self.run.objective.build(self.run.model, num_classes=self.num_classes)
        objective.load_state_dict(gathered)
        return objective


def _laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """A moment of the optimizer as a part of a whole, if it is of a part of `parameter`."""
    if not isinstance(parameter, DTensor) or moment.shape != parameter.to_local().shape:
        return moment
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        moment, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
