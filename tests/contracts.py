"""Finds every config of the package, so that the contract tests need no list of them."""

import importlib
import pkgutil
from collections.abc import Iterator

import vitreous
from vitreous.config import Config
from vitreous.fields import concrete

UNBUILDABLE: frozenset[str] = frozenset()
"""Configs that cannot be made without arguments, each with its reason beside it; none so far."""


def import_everything() -> None:
    """Import every module of the package, so that its classes are known."""
    for module in pkgutil.walk_packages(vitreous.__path__, "vitreous."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def configs() -> list[type[Config]]:
    """Every concrete config of the package, by name."""
    import_everything()
    found = {cls for cls in _all(Config) if cls.__module__.startswith("vitreous.")}
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


def variants(base: type[Config]) -> list[Config]:
    """One config of each variant of a family, with its defaults."""
    import_everything()
    return [cls() for cls in concrete(base).values() if cls.__module__.startswith("vitreous.")]


def _all(base: type[Config]) -> Iterator[type[Config]]:
    for cls in base.__subclasses__():
        if not getattr(cls, "__abstractmethods__", None):
            yield cls
        yield from _all(cls)
