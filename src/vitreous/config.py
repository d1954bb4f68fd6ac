"""Typed configuration: frozen dataclasses that build what they describe.

A `Config` is data about one component. It lives in the file of the component, holds that
component's defaults, and knows how to build it. There is no registry: a field annotated with an
abstract config (say `Position`) accepts any concrete one, so a new variant is a new class.
"""

import dataclasses
import importlib
import inspect
import itertools
import math
import types
import typing
from abc import ABC
from dataclasses import dataclass
from typing import Any

from vitreous.errors import InputError, did_you_mean

TRUSTED_PACKAGE = "vitreous."
BELOW_ONE = math.nextafter(1, 0)
"""The largest number below 1, for `check_ranges` of what must not reach 1."""


@dataclass(frozen=True, kw_only=True)
class Config(ABC):  # noqa: B024 - abstract leaves are found by their own methods
    """Base of every configuration; adds a lossless round trip to plain JSON types."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; nested configs carry the `class` that reads them back."""
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **fields}


def from_dict(data: Any) -> Any:
    """Rebuild the config that `Config.to_dict` wrote.

    Raises:
        InputError: if a class is not a config of this package (a run file names classes to import,
            so only ours are imported) or a field is unknown: an old file must not pass silently.
    """
    fields = dict(data) if isinstance(data, dict) else {}
    path = str(fields.pop("class", ""))
    cls = _named_class(path)
    if cls is None:
        raise InputError(f"config names class {path!r}, which is no config of vitreous; give the recipe instead")
    kinds = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for unknown in sorted(fields.keys() - set(known)):
        raise InputError(f"{cls.__name__} has no field {unknown!r}{did_you_mean(unknown, known)}")
    values = {name: _rich(value) for name, value in fields.items()}
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            shown = type(value).__name__ if isinstance(value, Config) else repr(value)
            wanted = getattr(kinds[name], "__name__", kinds[name])
            raise InputError(f"{cls.__name__}: {name} is {shown}; it must be of type {wanted}")
    return cls(**values)


def _named_class(path: str) -> type[Config] | None:
    """The concrete config of ours at that dotted path, if there is one."""
    module, _, name = path.rpartition(".")
    if not path.startswith(TRUSTED_PACKAGE) or "__main__" in module:
        return None
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return cls if inspect.isclass(cls) and issubclass(cls, Config) and not inspect.isabstract(cls) else None


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value`, read from JSON, is of the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        kinds = itertools.repeat(arguments[0]) if arguments[1:] == (...,) else arguments
        whole = arguments[1:] == (...,) or (isinstance(value, tuple) and len(value) == len(arguments))
        return isinstance(value, tuple) and whole and all(_fits(item, kind) for item, kind in zip(value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_ranges(config: Config, **ranges: tuple[float, float]) -> None:
    """Refuse numbers of `config` that lie outside of [least, most]; a tuple is checked item by item, None passes.

    Raises:
        InputError: names the field, its value and its range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not (least <= number <= most and math.isfinite(number)):
                above = {math.inf: f"be {least:g} or more", BELOW_ONE: f"be {least:g} or more and less than 1"}
                wanted = "be finite" if least == -math.inf else above.get(most, f"lie between {least:g} and {most:g}")
                raise InputError(f"{name} is {number}; it must {wanted}")


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, dict) and "class" in value:
        return from_dict(value)
    if isinstance(value, list):
        return tuple(_rich(item) for item in value)
    return value
