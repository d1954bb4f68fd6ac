"""How the weights lie on the processes, and how their gradients are added."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vitreous.config import Config, check_ranges
from vitreous.distributed import World
from vitreous.errors import InputError


@dataclass(frozen=True)
class Placed:
    """A module whose weights lie where they are to lie."""

    module: nn.Module
    """What to call in its place: it adds gradients over the processes in the backward pass."""
    alone: Callable[[], AbstractContextManager] = nullcontext
    """A context in which gradients stay in this process: those of all micro-batches but the last."""
    reshard: Callable[[], None] = lambda: None
    """Forget the whole weights that the last forward pass has left in memory; the parts count."""
    copies: int = 1
    """How many processes hold the same part of the weights."""
    copy: int = 0
    """Which of these this process is."""
    shard_group: Any = None
    """Processes among which a weight is divided; None where each holds it whole."""


@dataclass(frozen=True, kw_only=True)
class Parallel(Config):
    """How the weights lie on the processes. In a world of one they all lie there, whichever it is."""

    @abstractmethod
    def place(self, module: nn.Module, world: World, *, in_order: bool) -> Placed:
        """`module`, on its device; `in_order` adds gradients in the order of the processes (see `sum_in_order`)."""


@dataclass(frozen=True, kw_only=True)
class Replicate(Parallel):
    """Every process holds all weights (torch's DistributedDataParallel)."""

    def place(self, module: nn.Module, world: World, *, in_order: bool) -> Placed:
        module.to(world.device)
        if world.size == 1:
            return Placed(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for it, 2.11 has not
            wrapped = DistributedDataParallel(module, broadcast_buffers=False)
        wrapped.register_comm_hook(None, _add_bucket_in_order if in_order else _add_bucket)
        return Placed(wrapped, wrapped.no_sync, copies=world.size, copy=world.rank)


@dataclass(frozen=True, kw_only=True)
class FullShard(Parallel):
    """Every process holds an equal part of each weight (torch's fully_shard, FSDP2)."""

    def place(self, module: nn.Module, world: World, *, in_order: bool) -> Placed:
        return _shard(module, world, world.size, in_order=in_order)


@dataclass(frozen=True, kw_only=True)
class HybridShard(Parallel):
    """Groups of processes that divide the weights among them; the groups hold the same (HSDP)."""

    group_size: int = 8
    """Neighbouring processes that divide the weights among them, as those of one machine."""

    def __post_init__(self) -> None:
        check_ranges(self, group_size=(1, math.inf))

    def place(self, module: nn.Module, world: World, *, in_order: bool) -> Placed:
        if world.size > 1 and world.size % self.group_size:
            raise InputError(
                f"{world.size} processes do not divide into groups of {self.group_size}; "
                "choose another --parallel.group_size"
            )
        return _shard(module, world, self.group_size, in_order=in_order)


def units(module: nn.Module) -> list[nn.Module]:
    """The blocks of a module: what is sharded, compiled and computed again by itself."""
    lists = (getattr(child, "blocks", None) for child in module.modules())
    return [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]


def compute_again(module: nn.Module) -> None:
    """Keep of each block only its input, and compute the rest again in the backward pass (arXiv:1604.06174)."""
    for unit in units(module):
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)


def sum_in_order(parts: Float[Tensor, "part number"]) -> Float[Tensor, " number"]:
    """The sum over `parts`, pair by pair: ((a + b) + (c + d)) + ..., whatever computes it."""
    while parts.shape[0] > 1:
        paired = parts[: parts.shape[0] // 2 * 2].unflatten(0, (-1, 2))
        parts = torch.cat([paired[:, 0] + paired[:, 1], parts[paired.shape[0] * 2 :]])
    return parts[0]


@dataclass
class PairwiseSum:
    """Gradients of micro-batches, added in the same tree as `sum_in_order` adds processes.

    With powers of two, processes and micro-batches form one tree: the sum does not depend on how many of them are
    processes.
    """

    levels: list[list[Tensor] | None] = field(default_factory=list)
    """At place k the sum of 2^k micro-batches that still waits for its neighbour."""

    def add(self, gradients: list[Tensor]) -> None:
        """Count in one more micro-batch; takes over `gradients`."""
        for level, waiting in enumerate(self.levels):
            if waiting is None:
                self.levels[level] = gradients
                return
            torch._foreach_add_(waiting, gradients)
            gradients, self.levels[level] = waiting, None
        self.levels.append(gradients)

    def total(self) -> list[Tensor]:
        """The sum of all, of which there were a power of two."""
        total = self.levels[-1]
        assert total is not None
        return total


def local(tensor: Tensor) -> Tensor:
    """What of `tensor` lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard(module: nn.Module, world: World, group_size: int, *, in_order: bool) -> Placed:
    if world.size == 1:
        return Placed(module.to(world.device))
    groups = world.size // group_size
    mesh = init_device_mesh(world.device.type, (groups, group_size), mesh_dim_names=("copy", "shard"))
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # by torch's version
    for axis in ("copy", "shard"):  # torch gives new groups half an hour
        set_timeout(timedelta(seconds=world.timeout_s), mesh.get_group(axis))
    # gathered in float32 and cast by autocast, as where they are whole: tokens and norms stay in float32
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for unit in [*units(module), module]:
        sharded: Any = fully_shard(unit, mesh=mesh["shard"], mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)  # the loss is divided
        sharded.set_force_sum_reduction_for_comms(True)
        if in_order:
            sharded.set_custom_reduce_scatter(_ScatterInOrder())
        if groups > 1:
            sharded.set_all_reduce_hook(partial(_add, group=mesh.get_group("copy"), in_order=in_order))
    if hasattr(module, "scores"):  # how it is called when it is measured
        register_fsdp_forward_method(module, "scores")
    root: Any = module

    @contextmanager
    def alone() -> Iterator[None]:
        root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            root.set_requires_gradient_sync(True)

    return Placed(
        module,
        alone,
        reshard=root.reshard,
        copies=groups,
        copy=mesh.get_local_rank("copy"),
        shard_group=mesh.get_group("shard"),
    )


def _add(numbers: Tensor, *, group: Any, in_order: bool) -> None:
    """Add `numbers` over a group, in place."""
    if not in_order:
        dist.all_reduce(numbers, group=group)
        return
    size = dist.get_world_size(group)
    flat = numbers.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % size))
    part = _scatter_in_order(padded, group)
    dist.all_gather_into_tensor(padded, part, group=group)
    numbers.copy_(padded[: len(flat)].view_as(numbers))


def _scatter_in_order(numbers: Float[Tensor, " all"], group: Any) -> Float[Tensor, " part"]:
    """This process' part of the sum of `numbers` over a group, added in the order of the processes.

    As much travels as in a ring, whose order of addition depends on where in its buffer a number stands.
    """
    received = torch.empty_like(numbers)
    dist.all_to_all_single(received, numbers, group=group)
    return sum_in_order(received.view(dist.get_world_size(group), -1))


class _ScatterInOrder:
    """torch's reduce-scatter of FSDP2, in the order of the processes."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        output_tensor.copy_(_scatter_in_order(input_tensor, group))


def _add_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of gradients, where DistributedDataParallel would give their mean: the loss is divided."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def _add_bucket_in_order(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    _add(bucket.buffer(), group=None, in_order=True)
    device = bucket.buffer().device
    done: torch.futures.Future[Tensor] = torch.futures.Future(devices=None if device.type == "cpu" else [device])
    done.set_result(bucket.buffer())
    return done
