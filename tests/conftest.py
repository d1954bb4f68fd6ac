"""Fixtures that every test may use."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitreous.cli import main

os.environ["OMP_NUM_THREADS"] = "1"  # as many as before, however busy the machine is: sums in the same order
torch.ones(1, requires_grad=True).sum().backward()  # after a pretended step, it would start threads that no fork has
REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("real data in ../shared is absent")
    return folder


@pytest.fixture
def vitreous(capsys, monkeypatch, tmp_path) -> Callable[..., Answer]:
    """Runs a command line in this process, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> Answer:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["vitreous", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(words)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Answer(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Class folders of 24 noisy pictures each: blue (`sky`), green (`sea`), red (`wall`)."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    random = np.random.default_rng(0)
    for name in ("sky", "sea", "wall"):
        (root / name).mkdir(parents=True)
        for i in range(24):
            pixels = random.integers(0, 100, (16, 20, 3))
            pixels[..., {"wall": 0, "sea": 1, "sky": 2}[name]] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name}{i}.png")
    return root


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory) -> Path:
    """The folder of a finished run on `photos`."""
    from vitreous import fit
    from vitreous.console import Console

    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(str(photos), model="32x2/4", minutes=0.1, out=str(folder), console=Console(quiet=True))
    return folder


@pytest.fixture
def forbid(monkeypatch) -> Iterator[Callable[[Path], None]]:
    """Takes away the permission to read a file or folder; from root, whom no mode stops, by refusing that path."""
    modes: dict[Path, int] = {}

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(path, *arguments, **options):
            if isinstance(path, str | os.PathLike) and Path(path) in modes:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments, **options)

        return guarded

    def deny(path: Path) -> None:
        modes[path] = path.stat().st_mode
        path.chmod(0)
        if os.access(path, os.R_OK):
            monkeypatch.setattr(os, "open", refusing(os.open))
            monkeypatch.setattr(os, "scandir", refusing(os.scandir))

    yield deny
    for path, mode in modes.items():
        path.chmod(mode)
