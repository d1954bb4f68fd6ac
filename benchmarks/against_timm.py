"""Time and memory of our ViT and timm's on the same images, turn by turn in one process, as ratios.

    python benchmarks/against_timm.py [--out benchmarks/results/NAME.json]

Each pair is timed in alternation, so that what else the machine does falls on both; the ratio is of medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from vitreous import distributed
from vitreous.classifier import ClassifierConfig
from vitreous.doctor import examine
from vitreous.files import write_text
from vitreous.variants import timm_name, vit

CASES = {"cpu": [("Ti/16", 8), ("S/16", 4), ("B/16", 2)], "cuda": [("Ti/16", 256), ("S/16", 256), ("B/16", 128)]}
ROUNDS = {"cpu": 9, "cuda": 30}


def training_step(model: nn.Module, images: torch.Tensor, world: distributed.World) -> Callable[[], None]:
    """One forward, backward and AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
    model.train()

    def step() -> None:
        with world.autocast():
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(model: nn.Module, images: torch.Tensor, world: distributed.World) -> Callable[[], None]:
    """One forward pass."""

    def step() -> None:
        model.eval()
        with torch.inference_mode(), world.autocast():
            model(images)

    return step


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """How long `work` takes, to the end of what it started on the device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(name: str, batch_size: int, world: distributed.World) -> list[dict]:
    """Rows of the result for one model: training and inference."""
    config = ClassifierConfig(encoder=vit(name))
    ours = config.build().to(world.device)
    theirs = timm.create_model(timm_name(config.encoder), pretrained=False).to(world.device)
    images = torch.randn(batch_size, 3, 224, 224, device=world.device)
    rows = []
    for kind, make in (("training", training_step), ("inference", inference)):
        pair = [make(model, images, world) for model in (ours, theirs)]
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS[world.device.type] + 2):
            for work, measured in zip(pair, times):
                measured.append(seconds(work, world.device))
        mine, other = (statistics.median(measured[2:]) * 1000 for measured in times)  # the first two warm up
        row = {"model": name, "batch": batch_size, "kind": kind, "ours_ms": mine, "timm_ms": other}
        rows.append({**row, "ratio": mine / other, **memory(pair, world.device)})
        print(f"{name:6} batch {batch_size:<4} {kind:10} {mine:9.1f} ms, timm {other:9.1f} ms: {mine / other:.3f}")
    return rows


def memory(pair: list[Callable[[], None]], device: torch.device) -> dict:
    """Peak bytes on a GPU of each of the two; nothing elsewhere."""
    if device.type != "cuda":
        return {}
    peaks = []
    for work in pair:
        torch.cuda.reset_peak_memory_stats()
        seconds(work, device)
        peaks.append(torch.cuda.max_memory_allocated())
    return {"ours_peak_bytes": peaks[0], "timm_peak_bytes": peaks[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.manual_seed(0)
    world = distributed.start()
    rows = [row for name, batch_size in CASES[world.device.type] for row in compare(name, batch_size, world)]
    facts = {key: value for key, value in examine().items() if "disk" not in key and "cache" not in key}
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {facts['device']}",
        "seed": 0,
        "rows": rows,
        **facts,
    }
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
