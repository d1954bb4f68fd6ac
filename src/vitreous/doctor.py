"""What this machine offers, for a bug report or a first look."""

import os
import platform
import shutil
import tempfile
from pathlib import Path

PACKAGES = (
    "vitreous",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "huggingface-hub",
    "timm",
    "transformers",
)


def examine() -> dict[str, str]:
    """Facts by name, in the order to show them."""
    import torch

    from vitreous import distributed
    from vitreous.allocator import keep_freed_memory
    from vitreous.cache import cache_folder, offline
    from vitreous.cores import cores
    from vitreous.provenance import installed

    facts = {"python": f"{platform.python_version()} on {platform.platform()}"}
    facts |= installed(PACKAGES)
    world = distributed.start()
    facts["device"] = str(world.device)
    for index in range(torch.accelerator.device_count()):
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(index)
            facts[f"device {index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    facts["precision"] = world.precision
    facts["CPU"] = f"{torch.backends.cpu.get_cpu_capability()}, {cores()} cores usable"
    if hasattr(os, "getloadavg"):
        facts["CPU"] += f", load {os.getloadavg()[0]:.1f}"
    facts["threads"] = f"{world.threads} for training now (cores that are free; OMP_NUM_THREADS overrides)"
    if world.device.type == "cpu":
        facts["freed memory"] = keep_freed_memory()
    for name, folder in {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}.items():
        usage = shutil.disk_usage(folder)
        facts[f"disk, {name}"] = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {folder}"
    if Path("/dev/shm").is_dir():
        facts["shared memory"] = f"{shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB free (reader processes use it)"
    facts["cache"] = str(cache_folder())
    facts["hub"] = "offline by choice" if offline() else "asked once when a model name needs it"
    return facts
