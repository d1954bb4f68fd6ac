"""Typed configuration: frozen dataclasses that build what they describe.

A `Config` is data about one component. It lives in the file of the component, holds that
component's defaults, and knows how to build it. There is no registry: a field annotated with an
abstract config (say `Position`) accepts any concrete one, so a new variant is a new class.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import textwrap
import types
import typing
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vitreous.errors import InputError, did_you_mean

TRUSTED_PACKAGE = "vitreous."
BELOW_ONE = math.nextafter(1, 0)
"""The largest number below 1, for `check_ranges` of what must not reach 1."""
SomeConfig = TypeVar("SomeConfig", bound="Config")


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
                wanted = above.get(most, f"lie between {least:g} and {most:g}")
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


def concrete(base: type[SomeConfig]) -> dict[str, type[SomeConfig]]:
    """The variants of `base` that are imported, by class name; the base itself if it is one."""
    found = {} if inspect.isabstract(base) else {base.__name__: base}
    for subclass in base.__subclasses__():
        found.update(concrete(subclass))
    return found


@dataclass(frozen=True)
class Field:
    """One settable number of a config tree, for help pages and diffs."""

    path: str
    """Dotted name from the root, such as `model.depth`."""
    value: Any
    doc: str
    """The sentence under the field in the source."""


def walk(config: Config, prefix: str = "") -> Iterator[Field]:
    """Every field of `config` and of the configs in it, in the order of the source."""
    documents = _documents(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = prefix + field.name
        shown = type(value).__name__ if isinstance(value, Config) else value
        yield Field(path, shown, documents.get(field.name, ""))
        if isinstance(value, Config):
            yield from walk(value, f"{path}.")


def override(config: SomeConfig, changes: Mapping[str, str], *, prefix: str = "") -> SomeConfig:
    """`config` with fields, by their dotted names, read from text as the command line gives it.

    A field that holds a config takes the name of a class: `{"model.position": "SinCos2d"}`. All changes take effect
    together, so that they may contradict the old values one by one. `prefix` is put before names in messages.

    Raises:
        InputError: if there is no such field or a text does not fit its type; names what would.
    """
    kinds = typing.get_type_hints(type(config))
    new: dict[str, Any] = {}
    inside: dict[str, dict[str, str]] = {}
    for path, text in changes.items():
        name, _, rest = path.partition(".")
        if name not in {field.name for field in dataclasses.fields(config)}:
            known = [field.path for field in walk(config, prefix)]
            raise InputError(f"no field {prefix + path!r}{did_you_mean(prefix + path, known)}")
        if rest:
            inside.setdefault(name, {})[rest] = text
        else:
            new[name] = _parse(text, kinds[name], prefix + name)
    for name, below in inside.items():
        part = new.get(name, getattr(config, name))
        if not isinstance(part, Config):
            raise InputError(f"{prefix}{name} is {part!r}, which has no field {next(iter(below))!r}")
        new[name] = override(part, below, prefix=f"{prefix}{name}.")
    return dataclasses.replace(config, **new)


def _parse(text: str, kind: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if types.NoneType in arguments and text.lower() in ("none", "null"):
            return None
        errors = []
        for argument in arguments:
            if argument is not types.NoneType:
                try:
                    return _parse(text, argument, path)
                except InputError as error:
                    errors.append(error)
        raise errors[0]
    if origin is typing.Literal:
        if text in arguments:
            return text
        raise InputError(f"{path} cannot be {text!r}{did_you_mean(text, arguments)}")
    if origin is tuple:
        kinds = arguments[:1] if arguments[1:] == (...,) else arguments
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        if arguments[1:] != (...,) and len(parts) != len(kinds):
            raise InputError(f"{path} takes {len(kinds)} numbers with commas between, got {text!r}")
        return tuple(_parse(part.strip(), kinds[i % len(kinds)], path) for i, part in enumerate(parts))
    if inspect.isclass(kind) and issubclass(kind, Config):
        choices = {name.lower(): cls for name, cls in concrete(kind).items()}
        if text.lower() not in choices:
            raise InputError(f"{path} cannot be {text!r}{did_you_mean(text, [c.__name__ for c in choices.values()])}")
        return choices[text.lower()]()
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise InputError(f"{path} is a switch: give true or false, got {text!r}")
        return words[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise InputError(f"{path} takes {wanted}, got {text!r}") from None
    return text


@functools.cache
def _documents(cls: type[Config]) -> dict[str, str]:
    """The string under each annotated field, as it stands in the source, bases first."""
    documents: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (issubclass(base, Config) and base is not Config):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # a class made without a source file has no help
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                    documents[name] = " ".join(str(text).split())
    return documents
