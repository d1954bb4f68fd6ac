"""Where a run comes from: command, versions, machine, git state."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vitreous.config import Config


def describe_run(config: Config, *, seed: int) -> dict[str, Any]:
    """What run.json says of any run: config, command, versions, machine, git state, time."""
    packages = ("vitreous", "torch", "torchvision", "numpy", "pillow", "safetensors", "simplejpeg")
    return {
        "format": 1,
        "config": config.to_dict(),
        "command": command_line(),
        "directory": os.getcwd(),
        "seed": seed,
        "versions": {"python": platform.python_version(), **installed(packages)},
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "git": _git_state(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """The command as the user could type it again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["vitreous" if program in ("vitreous", "__main__.py") else program, *sys.argv[1:]])


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the working folder, None outside a repository."""
    try:
        ask = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
        lines = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.rpartition(" ")[2] for line in lines if line.startswith("# branch.oid")), "")
    return {"commit": commit, "changed_files": sum(not line.startswith("#") for line in lines)}
