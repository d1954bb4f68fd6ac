"""What looking inside costs: attention statistics and rollout of a ViT, from one pass, beside a forward alone.

    python benchmarks/inspection.py [--size B/16] [--images 128] [--batch 8] [--threads 1] [--out NAME.json]

Each batch of random pixels goes through the encoder twice, once alone and once watched, in random order: a pair. The
ratio is the median over pairs of watched / alone. `loaded` is the form that is fastest here (`packing.py`), where that
is another than the plain `module`. Tokens of the two are compared bit for bit.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.doctor import examine
from vitreous.files import write_text
from vitreous.inspection.attention import Weights, watch
from vitreous.inspection.distance import AttentionTotals
from vitreous.inspection.rollout import Rollout
from vitreous.packing import packed, pays
from vitreous.tables import table
from vitreous.tokens import Tokens
from vitreous.variants import encoder

SEED = 0


def watched(classifier: Classifier, images: torch.Tensor, totals: AttentionTotals) -> Tokens:
    """One pass that adds to the statistics and makes a rollout."""
    flow = Rollout()

    def see(layer: int, part: slice, weights: Weights) -> None:
        totals.see(layer, part, weights)
        flow.see(layer, part, weights)

    tokens = watch(classifier, images, see)
    assert torch.allclose(flow.flow.product().sum(dim=-1), torch.ones(()), atol=1e-4)
    return tokens


def timed(work: Callable[[], Tokens]) -> tuple[float, Tokens]:
    began = time.perf_counter()
    tokens = work()
    return time.perf_counter() - began, tokens


def measure(classifier: Classifier, *, num_images: int, batch_size: int) -> dict[str, Any]:
    """Seconds of each pair, alone and watched."""
    shuffled, side = random.Random(SEED), classifier.config.encoder.image_shape
    totals = AttentionTotals(classifier, torch.zeros(1, 3, *side))
    pairs = []
    for turn in range(1 + num_images // batch_size):
        images = torch.randn(batch_size, 3, *side)
        works = [
            ("alone", lambda images=images: classifier.encoder(images)),
            ("watched", lambda images=images: watched(classifier, images, totals)),
        ]
        taken = {name: timed(work) for name, work in shuffled.sample(works, 2)}
        alone, seen = taken["alone"][1], taken["watched"][1]
        assert torch.equal(alone.patches, seen.patches)
        assert torch.equal(alone.prefix, seen.prefix)
        if turn:  # the first pair warms up
            pairs.append((taken["alone"][0], taken["watched"][0]))
    return {
        "batch": batch_size,
        "images": len(pairs) * batch_size,
        "alone_ms": 1000 * statistics.median(alone for alone, _ in pairs),
        "watched_ms": 1000 * statistics.median(seen for _, seen in pairs),
        "ratio": statistics.median(seen / alone for alone, seen in pairs),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B/16")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    module = ClassifierConfig(encoder=encoder(given.size)).build().eval()
    forms = {"module": module, **({"loaded": packed(module)} if pays(torch.device("cpu")) else {})}
    rows = []
    with torch.inference_mode():
        for name, classifier in forms.items():
            rows.append({"model": name, **measure(classifier, num_images=given.images, batch_size=given.batch)})
    cells = [(r["model"], f"{r['alone_ms']:,.0f}", f"{r['watched_ms']:,.0f}", f"{r['ratio']:.3f}") for r in rows]
    print(f"{given.size}, batches of {given.batch}, {given.threads} threads")
    print(table([("model", "alone, ms", "watched, ms", "watched / alone"), *cells]))
    if given.out is not None:
        facts = {key: value for key, value in examine().items() if "disk" not in key and "cache" not in key}
        date, machine = datetime.now(UTC).date().isoformat(), f"{platform.machine()}, cpu, {given.threads} threads"
        result = {"date": date, "machine": machine, "size": given.size, "seed": SEED, "rows": rows, **facts}
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
