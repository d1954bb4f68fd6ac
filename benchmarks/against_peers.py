"""Our ViT beside the implementations a user would pick instead: the same shape and optimizer, turn by turn.

    python benchmarks/against_peers.py forward [--quick] [--out benchmarks/results/NAME.json]
    python benchmarks/against_peers.py step [--sizes S --batches 8] [--threads 1] [--device cuda --compile]

`forward` is inference, `step` is forward, cross-entropy, backward and AdamW. In each round everyone has a turn, in
random order. On a CPU each peer lives in two processes of its own, as glibc's thresholds follow what a process did
before: in one, `system`, memory is as the C library handles it; in the other, `kept`, as after `keep_freed_memory`.

Ratios are medians over rounds of what another took / what this one took, so above 1 this one is faster: `x timm` with
the same memory; `x rival` to the fastest eager peer that is not ours, with the system's; `x system` to itself with
the system's. CPU time is of all threads. `of matmul`: the model's matrix products in that time, as a share of the rate
of one big product. Leave the machine alone meanwhile; idle peers keep their memory (S in steps of 8: 10 GB together).
"""

import argparse
import json
import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vitreous import distributed
from vitreous.allocator import keep_freed_memory, return_freed_memory
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.cores import cores
from vitreous.doctor import examine
from vitreous.files import write_text
from vitreous.packing import packed, pays
from vitreous.provenance import installed
from vitreous.tables import table
from vitreous.vit import ViTConfig


@dataclass(frozen=True)
class Shape:
    """What every peer builds."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 16
    image_size: int = 224
    num_classes: int = 1000


SIZES = {
    "Ti": Shape(192, 12, 3, 768),
    "S": Shape(384, 12, 6, 1536),
    "B": Shape(768, 12, 12, 3072),
    "L": Shape(1024, 24, 16, 4096),
    "CIFAR": Shape(192, 9, 3, 768, patch_size=4, image_size=32, num_classes=10),
}
CASES = {
    ("forward", "cpu"): [(size, batch_size) for size in ("Ti", "S", "B") for batch_size in (1, 8)],
    ("forward", "cuda"): [("Ti", 256), ("S", 256), ("B", 256)],
    ("step", "cpu"): [("S", 8), ("CIFAR", 64)],
    ("step", "cuda"): [("S", 256), ("B", 128)],
}
QUICK = {"forward": [("Ti", 1)], "step": [("CIFAR", 8)]}
TURN_S = 0.5
"""A turn makes as many calls as fit, at least one."""
SEED = 0


def vitreous_model(shape: Shape) -> nn.Module:
    encoder = ViTConfig(
        width=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_dim=shape.mlp_dim,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
    )
    return ClassifierConfig(encoder=encoder, num_classes=shape.num_classes).build()


def timm_model(shape: Shape) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=shape.mlp_dim / shape.width,
        patch_size=shape.patch_size,
        img_size=shape.image_size,
        num_classes=shape.num_classes,
    )


def transformers_model(shape: Shape) -> nn.Module:
    import transformers

    class Logits(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images).logits

    common: dict[str, Any] = {"num_labels": shape.num_classes, "attn_implementation": "sdpa"}
    config = transformers.ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.mlp_dim,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
        **common,
    )
    return Logits(transformers.ViTForImageClassification(config))


def torchvision_model(shape: Shape) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        hidden_dim=shape.width,
        num_layers=shape.depth,
        num_heads=shape.num_heads,
        mlp_dim=shape.mlp_dim,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
    )


def vit_pytorch_model(shape: Shape) -> nn.Module:
    from vit_pytorch import ViT  # pyright: ignore[reportMissingImports]

    return ViT(
        dim=shape.width,
        depth=shape.depth,
        heads=shape.num_heads,
        dim_head=shape.width // shape.num_heads,
        mlp_dim=shape.mlp_dim,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
        pool="cls",
    )


PEERS = {
    "vitreous": vitreous_model,
    "timm": timm_model,
    "transformers": transformers_model,
    "torchvision": torchvision_model,
    "vit-pytorch": vit_pytorch_model,
}
IMPORTS = ["timm", "torchvision", "transformers.models.vit.modeling_vit", "vit_pytorch", "vitreous.classifier"]
COMPILED = " compiled"
PACKED = "vitreous packed"
"""As `vitreous predict` and `evaluate` compute where it pays: weights packed once, GELU inside the product."""
MATMUL = "matmul"
PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product is the yardstick."""


def num_parameters(peer: str, shape: Shape) -> int:
    """Numbers that a peer's model learns; vit-pytorch norms patches twice and has no bias in q, k and v."""
    patch, tokens = 3 * shape.patch_size**2, (shape.image_size // shape.patch_size) ** 2 + 1
    stem = (patch + 1 + tokens + 1) * shape.width  # with positions and the class token
    block = (4 * shape.width + 4 + 2 * shape.mlp_dim + 1 + 4) * shape.width + shape.mlp_dim
    head = 2 * shape.width + (shape.width + 1) * shape.num_classes
    extra = 2 * patch + 2 * shape.width - 3 * shape.width * shape.depth if peer == "vit-pytorch" else 0
    return stem + shape.depth * block + head + extra


def operations(shape: Shape) -> int:
    """Floating point operations of the matrix products of a forward of one image; a multiply-add is two."""
    patches = (shape.image_size // shape.patch_size) ** 2
    tokens = patches + 1
    dense = 4 * shape.width**2 + 2 * shape.width * shape.mlp_dim
    attention = 2 * tokens * shape.width
    stem, head = patches * 3 * shape.patch_size**2 * shape.width, shape.width * shape.num_classes
    return 2 * (stem + head + shape.depth * tokens * (dense + attention))


@dataclass(frozen=True)
class Case:
    """What every peer does in turn."""

    kind: str
    size: str
    batch_size: int
    device: str
    precision: str
    threads: int
    peers: tuple[str, ...]
    """Eager, and with `COMPILED` at the end of the name compiled."""

    @property
    def shape(self) -> Shape:
        return SIZES[self.size]


@dataclass(frozen=True)
class Turn:
    """What one call took, the mean over those of a turn."""

    wall_s: float
    cpu_s: float
    faults: float


def build(case: Case, peer: str) -> nn.Module:
    """A peer's model, of the size it should be."""
    model = PEERS[peer](case.shape)
    found, expected = sum(p.numel() for p in model.parameters()), num_parameters(peer, case.shape)
    assert found == expected, f"{peer} has {found:,} parameters instead of {expected:,}"
    return model.to(case.device)


def work_of(case: Case, peer: str, world: distributed.World) -> Callable[[], object]:
    """A function that makes one call."""
    model = build(case, "vitreous" if peer == PACKED else peer.removesuffix(COMPILED)).train(case.kind == "step")
    run = torch.compile(model) if peer.endswith(COMPILED) else model
    if peer == PACKED:
        assert isinstance(model, Classifier)
        run = packed(model)
    side = case.shape.image_size
    images = torch.randn(case.batch_size, 3, side, side, device=case.device)

    def forward() -> None:
        with torch.inference_mode(), world.autocast():
            run(images)

    if case.kind == "forward":
        return forward
    labels = torch.randint(case.shape.num_classes, (case.batch_size,), device=case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with world.autocast():
            logits = run(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def product_of(world: distributed.World) -> Callable[[], object]:
    """A big matrix product: what the device does at best."""
    side = PRODUCT[world.device.type]
    a, b = (torch.randn(side, side, device=world.device, dtype=world.dtype) for _ in range(2))
    return lambda: a @ b


def take_turn(work: Callable[[], object], device: str, *, calls: int) -> Turn:
    """Time `calls` calls, to the end of what they started on the device."""
    faults, wall, cpu = getrusage(RUSAGE_SELF).ru_minflt, time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - wall, time.process_time() - cpu, getrusage(RUSAGE_SELF).ru_minflt - faults
    return Turn(*(value / calls for value in spent))


def peak_bytes(work: Callable[[], object], device: str) -> int | None:
    """Memory that a call takes at its peak beyond what was there before; on a CPU known only to Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        take_turn(work, device, calls=1)
        return torch.cuda.max_memory_allocated() - before
    if platform.system() != "Linux":
        return None
    return_freed_memory()  # or the call would find it there
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A field of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def serve(connection: Connection, case: Case, peers: Sequence[str], memory: str) -> None:
    """Warm up, say what was found, then take the turns that are asked for until None comes."""
    means = keep_freed_memory() if memory == "kept" else "as it comes"
    torch.manual_seed(SEED)
    torch.set_num_threads(case.threads)
    dtype = getattr(torch, case.precision)
    world = distributed.World(0, 1, torch.device(case.device), dtype, case.threads)
    works, calls, found = {}, {}, {}
    for peer in peers:
        work = works[peer] = product_of(world) if peer == MATMUL else work_of(case, peer, world)
        take_turn(work, case.device, calls=2)  # compiles, too
        found[peer] = {"memory_means": means, "peak_bytes": peak_bytes(work, case.device)}
        take_turn(work, case.device, calls=1)  # what was returned comes back
        calls[peer] = max(round(TURN_S / take_turn(work, case.device, calls=1).wall_s), 1)
    connection.send(found)
    for peer in iter(connection.recv, None):
        connection.send(take_turn(works[peer], case.device, calls=calls[peer]))


@contextmanager
def serving(case: Case, peers: Sequence[str], memory: str) -> Iterator[Connection]:
    """A process that runs `serve`: fresh but for the imports, which take seconds and are done once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, case, peers, memory))
    process.start()
    theirs.close()  # so that its end is seen here
    try:
        yield ours
        ours.send(None)
        process.join()
    finally:
        process.kill()


def measure(case: Case, *, rounds: int) -> list[dict[str, Any]]:
    """A row for each peer and way to handle memory."""
    if case.device == "cpu":
        alone = [("system", MATMUL), *((memory, peer) for memory in ("system", "kept") for peer in case.peers)]
        teams = [(memory, [peer]) for memory, peer in alone]
    else:  # together, or each process would keep a share of the device's memory
        teams = [("device", [MATMUL, *case.peers])]
    first = teams[0][0]
    shuffled = random.Random(SEED)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    turns: dict[tuple[str, str], list[Turn]] = {}
    with ExitStack() as stack:
        places = {}
        for memory, peers in teams:
            connection = stack.enter_context(serving(case, peers, memory))
            for peer, facts in connection.recv().items():
                places[memory, peer], found[memory, peer], turns[memory, peer] = connection, facts, []
        for _ in range(rounds):
            for place in shuffled.sample(list(places), len(places)):
                places[place].send(place[1])
                turns[place].append(places[place].recv())
    eager = [peer for peer in case.peers if not peer.startswith("vitreous") and not peer.endswith(COMPILED)]
    rival = min(eager, key=lambda peer: _median(turns[first, peer], "wall_s"), default="vitreous")
    limit = PRODUCT[case.device] ** 3 * 2 / min(turn.wall_s for turn in turns.pop((first, MATMUL)))
    needed = operations(case.shape) * case.batch_size * (3 if case.kind == "step" else 1)
    rows = []
    for (memory, peer), mine in turns.items():
        wall_s = _median(mine, "wall_s")
        row: dict[str, Any] = {
            "kind": case.kind,
            "model": case.size,
            "batch": case.batch_size,
            "peer": peer,
            "memory": memory,
            **found[memory, peer],
            "page_faults": _median(mine, "faults"),
            "wall_ms": wall_s * 1000,
            "wall_best_ms": min(turn.wall_s for turn in mine) * 1000,
            "cpu_ms": _median(mine, "cpu_s") * 1000,
            "images_per_s": case.batch_size / wall_s,
            "matmul_flop_per_s": limit,
            "share_of_matmul": needed / wall_s / limit,
            "rival": rival,
        }
        for name, other in {"timm": (memory, "timm"), "rival": (first, rival), "system": (first, peer)}.items():
            if other in turns:
                row[f"{name}_over_this_wall"] = _ratio(turns[other], mine, "wall_s")
                row[f"{name}_over_this_cpu"] = _ratio(turns[other], mine, "cpu_s")
        rows.append({**row, "rounds": [[turn.wall_s, turn.cpu_s] for turn in mine]})
    return rows


def _median(turns: list[Turn], field: str) -> float:
    return statistics.median(getattr(turn, field) for turn in turns)


def _ratio(others: list[Turn], mine: list[Turn], field: str) -> float:
    """Median over rounds."""
    return statistics.median(getattr(other, field) / getattr(turn, field) for other, turn in zip(others, mine))


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "peer": lambda row: row["peer"],
    "memory": lambda row: row["memory"],
    "ms": lambda row: f"{row['wall_ms']:,.1f}",
    "best ms": lambda row: f"{row['wall_best_ms']:,.1f}",
    "CPU ms": lambda row: f"{row['cpu_ms']:,.1f}",
    "images/s": lambda row: f"{row['images_per_s']:,.1f}",
    "of matmul": lambda row: f"{row['share_of_matmul']:.0%}",
    "x timm": lambda row: f"{row['timm_over_this_wall']:.2f}" if "timm_over_this_wall" in row else "",
    "x rival": lambda row: f"{row['rival_over_this_wall']:.2f}",
    "x rival, CPU": lambda row: f"{row['rival_over_this_cpu']:.2f}",
    "x system, CPU": lambda row: f"{row['system_over_this_cpu']:.2f}",
    "faults": lambda row: f"{row['page_faults']:,.0f}",
    "peak MiB": lambda row: f"{row['peak_bytes'] / 2**20:,.0f}" if row["peak_bytes"] is not None else "",
}


def show(rows: list[dict[str, Any]]) -> None:
    """The rows of one case as a table, the fastest first."""
    first = rows[0]
    print(
        f"\n{first['kind']}, {first['model']}, batch {first['batch']}: "
        f"matmul {first['matmul_flop_per_s'] / 1e9:,.0f} GFLOP/s; the rival is {first['rival']}"
    )
    body = [[text(row) for text in COLUMNS.values()] for row in sorted(rows, key=lambda row: row["wall_ms"])]
    print(table([list(COLUMNS), *body]), flush=True)


def arguments() -> argparse.Namespace:
    """The command line, with `cases` and `peers` worked out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("forward", "step"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: those with a batch size of their own")
    parser.add_argument("--batches", nargs="+", type=int, help="images in a batch; default: what suits the device")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=cores(), help="default: the cores of this machine")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="of matrix products; default: float32, cuda bfloat16"
    )
    parser.add_argument("--compile", action="store_true", help="each peer compiled as well")
    parser.add_argument("--quick", action="store_true", help="one small case, 3 rounds: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    given = parser.parse_args()
    usual = QUICK[given.kind] if given.quick else CASES[given.kind, given.device]
    sizes = given.sizes or list(dict.fromkeys(size for size, _ in usual))
    if given.batches:
        given.cases = [(size, batch_size) for size in sizes for batch_size in given.batches]
    else:
        given.cases = [case for case in usual if case[0] in sizes]
    if missing := [size for size in sizes if size not in dict(given.cases)]:
        parser.error(f"say --batches for {', '.join(missing)}")
    given.precision = given.precision or ("bfloat16" if given.device == "cuda" else "float32")
    given.rounds = min(given.rounds, 3) if given.quick else given.rounds
    given.peers = []
    for peer in given.only or PEERS:
        if find_spec(peer.replace("-", "_")):
            given.peers += [peer, peer + COMPILED] if given.compile else [peer]
        else:
            print(f"{peer} is not installed: left out")
    if given.kind == "forward" and "vitreous" in given.peers and pays(torch.device(given.device)):
        given.peers.append(PACKED)
    return given


def main() -> None:
    given = arguments()
    facts = {key: value for key, value in examine().items() if "disk" not in key and "cache" not in key}
    rows = []
    for size, batch_size in given.cases:
        case = Case(given.kind, size, batch_size, given.device, given.precision, given.threads, tuple(given.peers))
        found = measure(case, rounds=given.rounds)
        show(found)
        rows += found
    if given.out is not None:
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {given.device}, {given.precision}, {given.threads} threads",
            "seed": SEED,
            "rounds": given.rounds,
            "rows": rows,
            **facts,
            **installed(["vit-pytorch"]),
        }
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
