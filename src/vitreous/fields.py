"""The fields of a config tree by their dotted names: listed for help pages, changed from text."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vitreous.config import Config
from vitreous.errors import InputError, did_you_mean

SomeConfig = TypeVar("SomeConfig", bound=Config)


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
