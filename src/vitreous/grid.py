"""Every combination of some values of some fields, carried out one after another, and what came out of each."""

import hashlib
import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.data.prepare import Prepared
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.evaluation.base import at_the_edge
from vitreous.experiment import carry_out, check_apart, first_difference, look, same_run
from vitreous.fields import override
from vitreous.metrics import Share, headline, mean_share
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.training import Diverged

LONGEST_NAME = 100
SEED = "seed"


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    path: str
    seed: int
    score: Share | None
    """On the images it was measured on, with its interval; None where it diverged."""
    split: str | None = None
    """Which images these are."""
    figure: str = ""
    """What the score is."""


@dataclass(frozen=True)
class Setting:
    """One combination of values, with all of its seeds."""

    values: dict[str, str]
    """What each field was given, but for the seed."""
    outcomes: list[Outcome]

    @property
    def score(self) -> Share | None:
        """The mean over seeds with Student's interval; of one seed, its own; None if one of them diverged."""
        found = [outcome.score for outcome in self.outcomes if outcome.score is not None]
        if len(found) < len(self.outcomes):
            return None
        return found[0] if len(found) == 1 else mean_share([share.value for share in found])


@dataclass(frozen=True)
class Swept:
    """A grid that has been carried out, best setting first."""

    split: str
    """Which images were measured."""
    figure: str
    """What the scores are: top-1, or mAP where images show several classes."""
    settings: list[Setting]
    notes: list[str]
    final: Setting | None
    """The best setting, trained on all training images and measured on what is held out; None if that was not asked."""

    def to_dict(self) -> dict:
        """All of it as JSON types."""

        def shown(setting: Setting) -> dict:
            return {**asdict(setting), "score": setting.score and asdict(setting.score)}

        settings, final = [shown(setting) for setting in self.settings], self.final and shown(self.final)
        return {"split": self.split, "figure": self.figure, "settings": settings, "notes": self.notes, "final": final}


def values_of(text: str) -> tuple[str, list[str]]:
    """A field and its values from `field=a,b,c`; commas in brackets are a value's own: `at=(0.3,0.6),(0.5,0.8)`.

    Raises:
        InputError: if that is not what `text` is, or a value stands there twice.
    """
    name, equals, rest = text.partition("=")
    values = [value.strip() for value in re.split(r",(?![^(]*\))", rest)]
    if not name or not equals or not all(values):
        raise InputError(f"--over takes FIELD=VALUE,VALUE,..., got {text!r}")
    if len(set(values)) < len(values):
        raise InputError(f"--over {name} has a value twice: {rest}")
    return name.strip().lstrip("-").replace("-", "_"), values


def combinations(run: Run, over: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, str], Run]]:
    """`run` with each combination of the values of the fields in `over`, the last field changing fastest.

    Raises:
        InputError: if a field does not exist, or a combination makes no run; names it.
    """
    found = []
    for values in itertools.product(*over.values()):
        chosen = dict(zip(over, values))
        try:
            found.append((chosen, override(run, chosen)))
        except InputError as error:
            raise InputError(f"{_name(chosen)}: {error}") from None
    return found


class Grid:
    """Runs in folders below `place`, one after another; done ones are not repeated, begun ones are gone on with."""

    def __init__(self, place: Path, world: World, console: Console, *, time_limit_s: float | None = None) -> None:
        self.place, self.world, self.console = place, world, console
        self.ends = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        self._looked_at: tuple[DataConfig, Prepared] | None = None

    def sweep(self, run: Run, over: Mapping[str, Sequence[str]], *, dev_ratio: float = 0.0) -> Swept:
        """All combinations, measured on held-out images; or, with `dev_ratio`, on that part of the training images.

        The best one is then trained on all of them and measured on the held-out images, which chose nothing
        (the paper's App. B.1.1).

        Raises:
            Stopped: if it was told to end; the same call goes on.
            InputError: if a combination makes no run, the data cannot be used, or every run diverged.
        """
        chosen_by = replace(run, data=replace(run.data, dev_ratio=dev_ratio))
        points = combinations(chosen_by, over)
        settings: dict[str, Setting] = {}
        for number, (values, point) in enumerate(points, 1):
            self.console.say(f"run {number} of {len(points)}: {_name(values) or 'as it is'}")
            kept = {name: value for name, value in values.items() if name != SEED}
            setting = settings.setdefault(_name(kept), Setting(kept, []))
            setting.outcomes.append(self._outcome(point, _name(values) or "run"))
        ranked = sorted(settings.values(), key=lambda setting: -setting.score.value if setting.score else 1.0)
        best = ranked[0]
        if best.score is None:
            raise InputError(f"every run of {self.place} diverged; give lower learning rates")
        final = self._finally(run, best) if dev_ratio else None
        outcome = best.outcomes[0]
        return Swept(str(outcome.split), outcome.figure, ranked, _at_the_edge(list(settings.values())), final)

    def _finally(self, run: Run, best: Setting) -> Setting:
        """The best setting on all training images, once for each of its seeds."""
        outcomes = []
        for outcome in best.outcomes:
            values = {**best.values, SEED: str(outcome.seed)}
            self.console.say(f"on all training images: {_name(values)}")
            outcomes.append(self._outcome(override(run, values), f"all {_name(values)}"))
        return Setting(best.values, outcomes)

    def _outcome(self, run: Run, name: str) -> Outcome:
        folder = RunFolder(self.place / _as_file(name))
        done = self.world.on_main(lambda: _state(folder, run))
        if done == "begun":
            try:
                self._carry_out(run, folder)
            except Diverged as error:
                self.console.say(f"{name}: {error}")
                done = "diverged"
        if done == "diverged":
            return Outcome(str(folder.path), run.seed, None)
        figures = self.world.on_main(folder.figures)
        figure, share = headline(figures)
        return Outcome(str(folder.path), run.seed, Share(**share), figures["split"], figure)

    def _carry_out(self, run: Run, folder: RunFolder) -> None:
        left = self.ends - time.monotonic()
        with ExitStack() as held:
            self.world.on_main(lambda: _claim(folder, run, held))
            prepared = self._prepared(run, folder)
            carry_out(run, folder, prepared=prepared, world=self.world, console=self.console, time_limit_s=left)

    def _prepared(self, run: Run, folder: RunFolder) -> Prepared:
        """The data, looked at once for all runs on the same."""
        if self._looked_at is None or self._looked_at[0] != run.data:
            prepared = self.world.on_main(lambda: look(run.data, folder, self.console, objective=run.objective))
            self._looked_at = run.data, prepared
        return self._looked_at[1]


def _claim(folder: RunFolder, run: Run, held: ExitStack) -> None:
    check_apart(folder, run.data)
    held.enter_context(folder.claimed())


def _state(folder: RunFolder, run: Run) -> Literal["begun", "diverged", "finished"]:
    if folder.exists() and not same_run(before := folder.read().get("config", {}), run):
        raise InputError(
            f"{folder.path} holds another run ({first_difference(before, run)}): of another sweep; choose another --out"
        )
    if folder.finished():
        return "finished"
    return "diverged" if folder.failure.exists() else "begun"


def _name(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _as_file(name: str) -> str:
    """`name` as a file may be called."""
    plain = re.sub(r"[^\w.=+(), -]", "_", name)
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    return f"{plain[:LONGEST_NAME]} {hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _at_the_edge(settings: Sequence[Setting]) -> list[str]:
    """A note for each field whose best number is the first or the last of those tried."""
    notes = []
    for field in settings[0].values:
        best: dict[float, float] = {}
        for setting in settings:
            try:
                number = float(setting.values[field])
            except ValueError:
                break
            best[number] = max(best.get(number, 0.0), setting.score.value if setting.score else 0.0)
        else:
            grid = sorted(best)
            notes += at_the_edge(field, grid, [best[number] for number in grid])
    return notes
