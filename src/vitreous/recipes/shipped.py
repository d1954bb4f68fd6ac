"""Finding a recipe by what the user typed."""

import importlib.util
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import vitreous.recipes
from vitreous.config import from_dict
from vitreous.errors import InputError, did_you_mean
from vitreous.files import read_text
from vitreous.run import Run


def recipes() -> dict[str, Callable[[], Run]]:
    """The shipped recipes by name: every public function of this package that returns a `Run`."""
    found = {}
    for module in pkgutil.iter_modules(vitreous.recipes.__path__):
        for name, function in vars(import_module(f"vitreous.recipes.{module.name}")).items():
            if inspect.isfunction(function) and inspect.signature(function) == inspect.Signature(return_annotation=Run):
                found[name] = function
    return found


def recipe(name: str) -> Run:
    """The run that `name` means: a shipped recipe, `my_file.py:function`, or a saved `RUN/run.json`.

    A recipe file of the user's is run as Python, so it can do whatever Python can.

    Raises:
        InputError: if there is none; names the nearest.
    """
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), function)
    if name.endswith(".json") or Path(name).is_dir():
        return _saved(Path(name) / "run.json" if Path(name).is_dir() else Path(name))
    shipped = recipes()
    if name not in shipped:
        near = did_you_mean(name, shipped)
        raise InputError(
            f"unknown recipe {name!r}{near if 'did you mean' in near else '; vitreous recipes lists them'} "
            "(or give my_file.py:function, or RUN/run.json)"
        )
    return shipped[name]()


def _saved(path: Path) -> Run:
    try:
        return run_from_record(json.loads(read_text(path)), str(path))
    except FileNotFoundError:
        raise InputError(f"no saved run at {path}; give the run.json of a run") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the run in {path}: {error}") from None


def run_from_record(record: dict, place: str) -> Run:
    """The run that a run.json describes."""
    run = from_dict(record.get("config")) if isinstance(record, dict) else None
    if not isinstance(run, Run):
        raise InputError(f"{place} holds no run; give the run.json of a run")
    return run


def _from_file(path: Path, function: str) -> Run:
    if not path.is_file():
        raise InputError(f"no recipe file {path}; give the path of a Python file that exists")
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does wrong is theirs to see
        raise InputError(f"recipe file {path} fails: {type(error).__name__}: {error}") from error
    made = getattr(module, function, None)
    names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
    if not callable(made):
        raise InputError(f"{path} has no function {function!r}{did_you_mean(function, names)}")
    try:
        run = made()
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}:{function} fails: {type(error).__name__}: {error}") from error
    if not isinstance(run, Run):
        raise InputError(f"{path}:{function} must return a vitreous.run.Run, it returned {type(run).__name__}")
    return run
