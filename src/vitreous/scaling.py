"""What training costs on many GPUs: memory, time and traffic of a step, checkpoints and failures, by arithmetic.

Sizes of the model are measured (`work`), what the machine does is assumed (`Cluster`, a field for each assumption), and
everything else follows from both. Nothing of it is a measurement of a cluster; expect some 30 % either way.
"""

import math
from dataclasses import dataclass, replace

import torch

from vitreous.budget import cost, memory
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.head import LinearHead
from vitreous.optim import OptimizerConfig
from vitreous.parallel import FullShard, HybridShard, Parallel, Replicate, units
from vitreous.pooling import Mean
from vitreous.vit import ViTConfig

FLOAT32 = 4
"""Bytes of a number: of weights, gradients, averages, and of gradients while they are added over processes."""
NETWORKS = {"8 x 400 Gb/s": 370e9, "400 Gb/s": 45e9}
"""Bytes/s of `Cluster.network_bandwidth`: eight ports a node, a port for each GPU, or one; nine tenths of the lines."""


@dataclass(frozen=True)
class Cluster:
    """Machines with GPUs. Defaults are nodes of eight NVIDIA H100 SXM."""

    gpus: int
    """How many compute one step together."""
    gpus_per_node: int = 8
    """GPUs that share a machine (DGX H100 data sheet)."""
    memory: float = 80e9
    """Bytes of a GPU (H100 data sheet)."""
    peak: float = 989e12
    """FLOP/s of dense bfloat16 products (H100 data sheet: 1,979 with sparsity, which is twice that)."""
    utilisation: float = 0.45
    """Share of `peak` that training reaches (MFU): 0.38 to 0.43 for Llama 3 (arXiv:2407.21783, Table 4), 0.55 for
    ViT-22B on TPUs (arXiv:2302.05442, Sec. 4.1)."""
    node_bandwidth: float = 370e9
    """Bytes/s at which a GPU takes part in a sum or gather inside a node; NVLink has 450e9 each way (data sheet)."""
    network_bandwidth: float = NETWORKS["8 x 400 Gb/s"]
    """Bytes/s at which a node does so with others: eight ports of 50e9 (DGX H100 data sheet), some of it lost."""
    node_write: float = 3e9
    """Bytes/s that a node's processes write together: one NVMe drive (assumed; an object store takes about 1e9)."""
    process_write: float = 1e9
    """Bytes/s that one process writes and sums up for a checksum (assumed)."""
    gpu_hours_between_failures: float = 16_384 * 54 * 24 / 419
    """GPU-hours for each unexpected stop: Llama 3 had 419 in 54 days on 16,384 GPUs (arXiv:2407.21783, Sec. 3.3.4)."""
    restart_s: float = 180.0
    """From a failure to the first new step (assumed)."""

    @property
    def nodes(self) -> int:
        """Machines that hold the GPUs."""
        return math.ceil(self.gpus / self.gpus_per_node)


@dataclass(frozen=True)
class Work:
    """What a model asks for, whatever trains it."""

    groups: tuple[tuple[tuple[int, ...], ...], ...]
    """Shapes of the parameters: of each block, which is sharded by itself, and last of the rest."""
    gflops: float
    """Of one image in a forward pass."""
    optimizer: int
    """Bytes that the optimizer keeps of all parameters."""
    cast: int
    """Bytes of the weights as they are multiplied, where that is another type."""
    activations: int
    """Bytes that wait for the backward pass, of one image."""
    recomputed: int
    """The same when blocks are computed again: inputs of all blocks, and everything of the largest."""

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return held(self.groups, shards=1)

    @property
    def checkpoint(self) -> int:
        """Bytes that a run must keep to go on: weights, their moving average (EMA), the optimizer's state."""
        return 2 * FLOAT32 * self.parameters + self.optimizer


@dataclass(frozen=True)
class Step:
    """One step of training on one of the GPUs."""

    parameters: int
    """Numbers of the model that lie on it, at most."""
    state: float
    """Bytes between steps: weights, gradients and EMA in float32, and the optimizer's state."""
    passing: float
    """Bytes that a step needs besides: weights as they are multiplied, gradients on their way."""
    images: int
    """Its part of the batch."""
    largest: int
    """Most images that fit at once; 0 if none does."""
    micro_batches: int
    """Into how many equal ones its part is cut, so that each fits; 0 if none does."""
    activations: float
    """Bytes of one micro-batch."""
    sent: float
    """Bytes it sends, and receives as many."""
    compute_s: float
    """Time to compute."""
    communication_s: float
    """Time to communicate."""

    @property
    def memory(self) -> float:
        """Bytes at most."""
        return self.state + self.passing + self.activations

    @property
    def apart_s(self) -> float:
        """Time of a step that communicates only while it does not compute."""
        return self.compute_s + self.communication_s

    @property
    def overlapped_s(self) -> float:
        """Time of a step that hides the shorter of both behind the longer."""
        return max(self.compute_s, self.communication_s)

    @property
    def critical_batch(self) -> float:
        """Images a GPU for which communicating takes as long as computing."""
        return self.images * self.communication_s / self.compute_s


@dataclass(frozen=True)
class Endurance:
    """What checkpoints and failures cost a run."""

    sharded_s: float
    """To write a checkpoint when every process writes its part."""
    single_s: float
    """The same when one process writes all of it."""
    between_failures_s: float
    """Mean time until any of the GPUs, or what serves it, fails."""
    interval_s: float
    """From one checkpoint to the next, so that least is lost."""
    lost: float
    """Share of the time that goes into checkpoints, lost steps and restarts."""


def work(config: ClassifierConfig, *, optimizer: OptimizerConfig, dtype: torch.dtype = torch.bfloat16) -> Work:
    """What a ViT asks for, followed through its own code on tensors without numbers.

    Raises:
        InputError: if the encoder is no ViT, whose blocks are alike.
    """
    encoder = config.encoder
    if not isinstance(encoder, ViTConfig):
        raise InputError("many GPUs are worked out for a ViT, whose blocks are alike; give one, such as H/14")
    with torch.device("meta"):
        classifier = config.build()
    blocks = [list(unit.parameters()) for unit in units(classifier)]
    inside = {parameter for block in blocks for parameter in block}
    rest = [parameter for parameter in classifier.parameters() if parameter not in inside]
    spent = cost(config)
    shallow, deeper = (replace(config, encoder=replace(encoder, depth=depth)) for depth in (1, 2))
    complete = replace(shallow, pooling=Mean(), head=LinearHead())  # where patches are read, no block leaves them out
    one, two, whole = (memory(config, optimizer=optimizer.build, dtype=dtype) for config in (shallow, deeper, complete))
    block = two.activations - one.activations
    return Work(
        groups=tuple(tuple(tuple(parameter.shape) for parameter in group) for group in [*blocks, rest]),
        gflops=spent.gflops,
        optimizer=one.optimizer + (encoder.depth - 1) * (two.optimizer - one.optimizer),
        cast=one.weights + (encoder.depth - 1) * (two.weights - one.weights),
        activations=one.activations + (encoder.depth - 1) * block,
        recomputed=max(one.activations, whole.activations)
        + (encoder.depth - 1) * FLOAT32 * spent.tokens * encoder.width,
    )


def held(groups: tuple[tuple[tuple[int, ...], ...], ...], *, shards: int) -> int:
    """Numbers on the first of `shards` processes; each parameter is cut along its first axis, as evenly as can be."""
    return sum(math.ceil(shape[0] / shards) * math.prod(shape[1:]) for group in groups for shape in group)


def step(work: Work, cluster: Cluster, *, parallel: Parallel, batch_size: int, recompute: bool = False) -> Step:
    """One step over `batch_size` images; `recompute` is activation checkpointing.

    Every micro-batch gathers the weights that are sharded; gradients are added over the GPUs after the last one, and
    until then lie whole on each (as `Run.num_micro_batches` does it).

    Raises:
        InputError: if the batch does not divide among the GPUs, or these not into the groups of `parallel`.
    """
    if batch_size % cluster.gpus:
        near = max(round(batch_size / cluster.gpus), 1) * cluster.gpus
        raise InputError(f"{batch_size:,} images do not divide among {cluster.gpus:,} GPUs; take a batch of {near:,}")
    shards = num_shards(parallel, cluster)
    groups = cluster.gpus // shards
    parameters = held(work.groups, shards=shards)
    state = parameters * (3 * FLOAT32 + work.optimizer / work.parameters)
    if shards == 1:
        passing = work.cast + (FLOAT32 * work.parameters if groups > 1 else 0)  # DDP copies gradients into buckets
        gathered = 0
    else:
        *blocks, rest = (sum(math.prod(shape) for shape in group) for group in work.groups)
        # cast for products; gathered: the rest, the block that is computed and the next; gradients of one, as computed
        # and as added
        passing = work.cast + FLOAT32 * (rest + 2 * max(blocks)) + 2 * FLOAT32 * max(blocks)
        gathered = 2 * FLOAT32 * work.parameters  # for forward and for backward
    images, image = batch_size // cluster.gpus, work.recomputed if recompute else work.activations
    largest = max(int((cluster.memory - state - passing) // image), 0)
    if largest < images and shards > 1:
        passing += FLOAT32 * work.parameters
        largest = max(int((cluster.memory - state - passing) // image), 0)
    divisors = (n for k in range(1, math.isqrt(images) + 1) if images % k == 0 for n in (k, images // k))
    micro_batches = min((n for n in divisors if images <= n * largest), default=0)
    inside = (max(micro_batches, 1) * gathered + FLOAT32 * work.parameters * (shards > 1)) * (1 - 1 / shards)
    across = 2 * FLOAT32 * work.parameters / shards * (1 - 1 / groups)
    within_node = shards <= cluster.gpus_per_node
    return Step(
        parameters=parameters,
        state=state,
        passing=passing,
        images=images,
        largest=largest,
        micro_batches=micro_batches,
        activations=image * images / max(micro_batches, 1),
        sent=inside + across,
        compute_s=(4 if recompute else 3) * work.gflops * 1e9 * images / (cluster.peak * cluster.utilisation),
        communication_s=inside / (cluster.node_bandwidth if within_node else _between_nodes(cluster))
        # the GPUs of a node, which hold different shards, share its network
        + across * min(shards, cluster.gpus_per_node) / (_between_nodes(cluster) if cluster.nodes > 1 else math.inf)
        + (across / cluster.node_bandwidth if cluster.nodes == 1 else 0),
    )


def num_shards(parallel: Parallel, cluster: Cluster) -> int:
    """Into how many parts the weights are cut."""
    if isinstance(parallel, HybridShard):
        size = min(parallel.group_size, cluster.gpus)
        if cluster.gpus % size:
            raise InputError(f"{cluster.gpus:,} GPUs do not divide into groups of {size}; take a multiple of {size}")
        return size
    assert isinstance(parallel, FullShard | Replicate)
    return cluster.gpus if isinstance(parallel, FullShard) else 1


def endurance(checkpoint: float, cluster: Cluster) -> Endurance:
    """What it costs to be interrupted, with a checkpoint of so many bytes that stops training while it is written."""
    sharded_s = checkpoint / min(cluster.nodes * cluster.node_write, cluster.gpus * cluster.process_write)
    between_s = cluster.gpu_hours_between_failures * 3600 / cluster.gpus
    interval_s = best_interval(sharded_s, between_failures_s=between_s)
    share = lost(sharded_s, interval_s=interval_s, between_failures_s=between_s, restart_s=cluster.restart_s)
    return Endurance(sharded_s, checkpoint / cluster.process_write, between_s, interval_s, share)


def best_interval(checkpoint_s: float, *, between_failures_s: float) -> float:
    """Seconds from one checkpoint to the next for which least is lost (Young 1974; Daly 2006, first order)."""
    return math.sqrt(2 * checkpoint_s * between_failures_s)


def lost(checkpoint_s: float, *, interval_s: float, between_failures_s: float, restart_s: float) -> float:
    """Share of the time: writing checkpoints; and at a failure the restart and half an interval computed again."""
    return checkpoint_s / interval_s + (interval_s / 2 + restart_s) / between_failures_s


def _between_nodes(cluster: Cluster) -> float:
    return min(cluster.network_bandwidth, cluster.node_bandwidth)
