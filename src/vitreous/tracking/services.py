"""Trackers that are installed apart: Weights & Biases, MLflow and Trackio, each behind the same three words."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vitreous.errors import InputError, did_you_mean

PROJECT = "vitreous"
"""Where runs go, if the tracker's own settings name no other place."""
MLFLOW_PARAMS = 100
"""Most params in one request to MLflow."""


class Service(Protocol):
    """A run under way in a tracker."""

    id: str
    """What the tracker knows the run by, to go on with it."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values, all of them finite."""

    def end(self, *, done: bool) -> None:
        """Send what is left; `done` says whether the run came to its end."""


class WandB:
    """Weights & Biases: `wandb.init`, `Run.log`, `Run.finish`. Its settings are its own environment variables."""

    def __init__(self, name: str, config: Mapping[str, Any], *, folder: Path, id: str | None) -> None:
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        init = importlib.import_module("wandb").init
        self._run = init(
            project=project, name=name, config=dict(config), dir=str(folder.resolve()), id=id, resume="allow"
        )
        self.id = self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def end(self, *, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """MLflow: `start_run`, `log_params`, `log_metrics`, `end_run`, where MLFLOW_TRACKING_URI says."""

    def __init__(self, name: str, config: Mapping[str, Any], *, folder: Path, id: str | None) -> None:
        self._mlflow = importlib.import_module("mlflow")
        run = self._mlflow.start_run(run_id=id) if id else self._mlflow.start_run(run_name=name)
        self.id = run.info.run_id
        if id is None:  # they cannot be changed later
            pairs = [(key, str(value)) for key, value in config.items()]
            for start in range(0, len(pairs), MLFLOW_PARAMS):
                self._mlflow.log_params(dict(pairs[start : start + MLFLOW_PARAMS]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def end(self, *, done: bool) -> None:
        self._mlflow.end_run("FINISHED" if done else "KILLED")


class Trackio:
    """Trackio: `trackio.init`, `Run.log`, `Run.finish`; a run is known by its name."""

    def __init__(self, name: str, config: Mapping[str, Any], *, folder: Path, id: str | None) -> None:
        self.id = id or f"{name}-{os.urandom(4).hex()}"  # two folders of one name are two runs
        init = importlib.import_module("trackio").init
        self._run = init(project=PROJECT, name=self.id, config=dict(config), resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def end(self, *, done: bool) -> None:
        self._run.finish()


SERVICES: dict[str, type[WandB] | type[MLflow] | type[Trackio]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def check_installed(names: tuple[str, ...]) -> None:
    """Nothing, if these trackers can be used.

    Raises:
        InputError: if there is none of that name, or it is not installed.
    """
    for name in names:
        if name not in SERVICES:
            raise InputError(f"no tracker {name!r}{did_you_mean(name, SERVICES)}")
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(
                f"{name} is not installed: pip install 'vitreous[{name}]'; or leave it out of --trackers: "
                "TensorBoard's files are written in any case"
            ) from None
