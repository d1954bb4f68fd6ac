"""What `vitreous budget --gpus` prints."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vitreous.parallel import FullShard, HybridShard, Parallel, Replicate
from vitreous.scaling import NETWORKS, Cluster, Step, Work, endurance, step
from vitreous.tables import table

WAYS: tuple[Parallel, ...] = (Replicate(), FullShard(), HybridShard())
FILES = (110, 35)
"""kB of an image on the disk: as ImageNet's, and as JPEG of 256 pixels."""


def figures(work: Work, clusters: Sequence[Cluster], *, batch_size: int) -> dict[str, Any]:
    """Everything there is, as JSON types; bytes and seconds."""
    rows = []
    for cluster in clusters:
        lasting = vars(endurance(work.checkpoint, cluster))
        rows.append({**vars(cluster), "batch_size": batch_size, "endurance": lasting, "steps": []})
        for network, bandwidth in NETWORKS.items():
            joined = replace(cluster, network_bandwidth=bandwidth)
            for way in WAYS:
                for recompute in (False, True):
                    found = step(work, joined, parallel=way, batch_size=batch_size, recompute=recompute)
                    derived = {name: getattr(found, name) for name in DERIVED}
                    what = {"parallel": type(way).__name__, "network": network, "activation_checkpointing": recompute}
                    rows[-1]["steps"].append({**what, **vars(found), **derived})
    whole = {name: getattr(work, name) for name in ("parameters", "gflops", "activations", "recomputed", "checkpoint")}
    return {**whole, "clusters": rows}


DERIVED = ("memory", "apart_s", "overlapped_s", "critical_batch")


def page(work: Work, clusters: Sequence[Cluster], *, batch_size: int) -> str:
    """Tables: memory, time with either network, and what a run needs besides."""
    first = clusters[0]
    speed = first.peak * first.utilisation / (3e9 * work.gflops)
    data = " or ".join(f"{speed * kilobytes / 1e3:,.1f} MB/s of files of {kilobytes} kB" for kilobytes in FILES)
    parts = [
        f"{work.parameters:,} parameters, {work.gflops:,.2f} GFLOPs an image, {batch_size:,} images a step",
        f"activations: {work.activations / 1e6:,.1f} MB an image; {work.recomputed / 1e6:,.1f} MB with checkpointing",
        f"a GPU: {first.peak / 1e12:,.0f} TFLOP/s x {first.utilisation:.0%}: {speed:,.0f} images/s, {data}",
        f"\nmemory, GB of {first.memory / 1e9:,.1f}; * with activation checkpointing",
        _aligned([MEMORY, *(_memory(work, cluster, way, batch_size) for cluster in clusters for way in WAYS)]),
    ]
    for network, bandwidth in NETWORKS.items():
        joined = [replace(cluster, network_bandwidth=bandwidth) for cluster in clusters]
        rows = [_time(work, cluster, way, batch_size) for cluster in joined for way in WAYS]
        parts += [f"\ntime of a step, ms; {network} between nodes", _aligned([TIME, *rows])]
    parts += ["\ncheckpoints and failures", _aligned([RUN, *(_run(work, cluster) for cluster in clusters)])]
    return "\n".join(parts)


MEMORY = ("GPUs", "parallel", "images", "state", "passing", "cut in", "together", "cut in*", "together*")
TIME = ("GPUs", "parallel", "GB sent", "compute", "send", "apart", "overlapped", "images/s", "critical batch")
RUN = ("GPUs", "GB", "all write, s", "one writes, s", "between failures, h", "interval, s", "lost, %")


def _memory(work: Work, cluster: Cluster, way: Parallel, batch_size: int) -> list[str]:
    plain, again = _steps(work, cluster, way, batch_size)
    cells = [f"{cluster.gpus:,}", type(way).__name__, f"{plain.images:,}"]
    cells += [f"{plain.state / 1e9:,.2f}", f"{plain.passing / 1e9:,.2f}"]
    for found in (plain, again):
        fits = found.micro_batches > 0
        cells += [f"{found.micro_batches:,}" if fits else "-", f"{found.memory / 1e9:,.1f}" if fits else "-"]
    return cells


def _time(work: Work, cluster: Cluster, way: Parallel, batch_size: int) -> list[str]:
    plain, again = _steps(work, cluster, way, batch_size)
    found = plain if plain.micro_batches else again
    cells = [f"{cluster.gpus:,}", type(way).__name__]
    if not found.micro_batches:
        return [*cells, *["-"] * (len(TIME) - 2)]
    times = (found.compute_s, found.communication_s, found.apart_s, found.overlapped_s)
    rate = f"{batch_size / found.overlapped_s:,.0f}"
    return [
        *cells,
        f"{found.sent / 1e9:,.2f}",
        *(f"{1e3 * s:,.1f}" for s in times),
        rate,
        f"{found.critical_batch:,.1f}",
    ]


def _run(work: Work, cluster: Cluster) -> list[str]:
    lasting = endurance(work.checkpoint, cluster)
    numbers = (lasting.between_failures_s / 3600, lasting.interval_s, 100 * lasting.lost)
    cells = [
        f"{cluster.gpus:,}",
        f"{work.checkpoint / 1e9:,.1f}",
        f"{lasting.sharded_s:,.2f}",
        f"{lasting.single_s:,.1f}",
    ]
    return [*cells, f"{numbers[0]:,.0f}", f"{numbers[1]:,.0f}", f"{numbers[2]:,.3f}"]


def _steps(work: Work, cluster: Cluster, way: Parallel, batch_size: int) -> tuple[Step, Step]:
    plain, again = (
        step(work, cluster, parallel=way, batch_size=batch_size, recompute=again) for again in (False, True)
    )
    return plain, again


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns stand to the right but for the second, also where one has a dash."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return table([[text if i == 1 else text.rjust(widths[i]) for i, text in enumerate(row)] for row in rows])
