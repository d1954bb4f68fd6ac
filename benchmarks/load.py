"""Time and memory of loading a ViT's weights: ours beside timm's, each in a fresh process, turn by turn.

    python benchmarks/load.py [--size L/16] [--rounds 5] [--out benchmarks/results/load.json]

A file of random weights in timm's names is written to a temporary folder, and read once before the first turn, so that
it lies in the system's cache. `peak` is how far the resident memory rises above what it was after the imports, as a
multiple of the file's size.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from vitreous.doctor import examine
from vitreous.files import write_text
from vitreous.tables import table

OURS = """
import vitreous.weights.product
from vitreous.weights.open import open_model
load = lambda: open_model(path)
"""
TIMMS = """
import timm, torch
load = lambda: timm.create_model(name, checkpoint_path=path).eval()
"""
TURN = """
import sys, time
name, path = sys.argv[1:]
{imports}
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts again from here
before, began = status("VmRSS"), time.perf_counter()
model = load()
print(time.perf_counter() - began, status("VmHWM") - before)
"""


def turn(peer: str, name: str, path: Path) -> tuple[float, int]:
    """Seconds and bytes of one load."""
    code = TURN.format(imports=OURS if peer == "vitreous" else TIMMS)
    done = subprocess.run([sys.executable, "-c", code, name, str(path)], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="L/16", help="a size that timm has too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    given = parser.parse_args()

    import timm
    import torch
    from safetensors.torch import save_file

    from vitreous.variants import encoder, timm_name

    torch.manual_seed(0)
    name = timm_name(encoder(given.size))
    assert name is not None, f"timm has no {given.size}"
    turns: dict[str, list[tuple[float, int]]] = {"vitreous": [], "timm": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(timm.create_model(name).state_dict(), path, metadata={"format": "pt"})
        size = path.stat().st_size
        for peer in turns:
            turn(peer, name, path)
        for _ in range(given.rounds):
            for peer, measured in turns.items():
                measured.append(turn(peer, name, path))
    rows = []
    for peer, measured in turns.items():
        seconds = statistics.median(first for first, _ in measured)
        ratio = statistics.median(ours / other for (ours, _), (other, _) in zip(measured, turns["timm"]))
        peak = statistics.median(second for _, second in measured) / size
        rows.append({"peer": peer, "seconds": seconds, "over_timm": ratio, "peak_over_file": peak, "turns": measured})
    print(f"{name}, {size / 2**20:,.0f} MiB")
    cells = [(r["peer"], f"{r['seconds']:.2f}", f"{r['over_timm']:.2f}", f"{r['peak_over_file']:.2f}") for r in rows]
    print(table([("loader", "seconds", "over timm", "peak, files"), *cells]))
    if given.out is not None:
        facts = {key: value for key, value in examine().items() if "disk" not in key and "cache" not in key}
        date = datetime.now(UTC).date().isoformat()
        result = {"date": date, "machine": platform.machine(), "model": name, "bytes": size, "rows": rows, **facts}
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
