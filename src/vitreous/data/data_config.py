"""Which images to train and measure on, as data."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitreous.config import BELOW_ONE, Config, check_ranges, from_dict
from vitreous.console import Console
from vitreous.data.joined import joined
from vitreous.data.layouts import absolute, open_data, short_name
from vitreous.data.listing import Splits
from vitreous.data.order import PERIOD
from vitreous.data.remote import Remote
from vitreous.errors import InputError

MISSING = "missing_shards"
"""Addresses of what was left out, in the summary of a run."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which images to train and measure on."""

    path: str = "digits"
    """Folder of class folders, tar, CSV, address, or a name: digits, cifar10:PATH, fashion-mnist:PATH."""
    val: str | None = None
    """A second folder, tar or CSV to measure on; without one, `path` says or a part is held out."""
    more: tuple[str, ...] = ()
    """Further data to train on, each given as `path` is; classes go by their names."""
    shares: tuple[float, ...] = ()
    """How much of what is shown in training comes from `path` and from each of `more`, such as 3,1; each order is
    shuffled for itself. By default every image comes as often as any other."""
    holdout_ratio: float = 0.2
    """Part of each class to measure on, where the data come in one piece."""
    split_seed: int = 0
    """Another seed holds out other images."""
    dev_ratio: float = 0.0
    """Part of each class of the training images to measure on in place of what is held out, to choose settings by
    (the paper's App. B.1.1); 0 for the final measurement."""
    max_bad_ratio: float = 0.01
    """Part of the files that may be unreadable before training is refused."""
    allow_bad: bool = False
    """Train however many files are unreadable."""
    missing_shards: Literal["stop", "skip"] = "stop"
    """What to do when a server does not give a shard: stop, or train without it and list it."""

    def __post_init__(self) -> None:
        check_ranges(self, holdout_ratio=(0, BELOW_ONE), max_bad_ratio=(0, 1), dev_ratio=(0, BELOW_ONE))
        check_ranges(self, shares=(0, math.inf))
        if self.shares and (not self.more or len(self.shares) != 1 + len(self.more)):
            raise InputError(
                f"shares has {len(self.shares)} numbers for {1 + len(self.more)} data sets; "
                "give one for path and one for each of more"
            )
        if any(share < sum(self.shares) / PERIOD for share in self.shares):
            raise InputError(f"a share of {min(self.shares):g} is none of {PERIOD:,} images; give larger ones")

    @property
    def places(self) -> tuple[str, ...]:
        """All data to train on, as they are given."""
        return self.path, *self.more

    def open(self, *, console: Console | None = None, begun: dict[str, Any] | None = None) -> Splits:
        """The data in the splits they come with, by names alone.

        `console` shows what is fetched. `begun` is the run.json of a run that goes on: it left out the shards that it
        will leave out, and stops where another is missing.

        Raises:
            InputError: if they are not there.
        """
        data = begun.get("data") if begun is not None else None
        left_out = data.get(MISSING) if isinstance(data, dict) else None
        remote = Remote(
            skip=begun is None and self.missing_shards == "skip",
            without=frozenset(left_out if isinstance(left_out, list) else ()),
            console=console or Console(),
        )
        opened = open_data(self.path, val=self.val, remote=remote)
        more = [(short_name(text), open_data(text, remote=remote)) for text in self.more]
        return joined(opened, more) if more else opened

    @classmethod
    def of_run(cls, record: dict[str, Any]) -> "DataConfig":
        """The data of the run that `record` (a run.json) describes, for a process in any folder.

        Raises:
            InputError: if it describes none.
        """
        data, folder = from_dict(record.get("config", {}).get("data")), Path(record.get("directory", ""))
        if not isinstance(data, cls):
            raise InputError("run.json names no data; begin again with another --out")
        more = tuple(absolute(text, folder) for text in data.more)
        return replace(data, path=absolute(data.path, folder), val=data.val and absolute(data.val, folder), more=more)
