"""What the shipped recipes are, read from their docstrings: no recipe is imported, and so neither is torch."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import vitreous.recipes
from vitreous.config import Config
from vitreous.fields import Field, walk

LABELLED = re.compile(r"^([A-Z]\w+): (.*(?:\n(?![A-Z]\w+: ).+)*)", re.MULTILINE)


@dataclass(frozen=True)
class Described:
    """A recipe in words. The first sentence of its docstring is "MODEL on DATA."."""

    name: str
    model: str
    data: str
    source: str
    """Paper and table."""
    expected: str
    """What it reaches, and who says so; the number ends at the first semicolon."""
    cost: str
    """Hardware and time, and who says so; they end at the first semicolon."""
    command: str
    text: str
    """The whole docstring."""
    family: str
    """That of its module: what its recipes share, and in what they differ from the source."""


def described() -> list[Described]:
    """The shipped recipes in the order of the source: every public function `() -> Run` of the package."""
    found = []
    for module in pkgutil.iter_modules(vitreous.recipes.__path__):
        file = Path(vitreous.recipes.__path__[0], f"{module.name}.py")
        tree = ast.parse(file.read_text("utf-8"))
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        found += [_read(node, ast.get_docstring(tree) or "") for node in functions if _is_recipe(node)]
    return found


def _is_recipe(node: ast.FunctionDef) -> bool:
    return ast.unparse(node.args) == "" and node.returns is not None and ast.unparse(node.returns) == "Run"


def _read(node: ast.FunctionDef, family: str) -> Described:
    text = ast.get_docstring(node) or ""
    model, _, data = text.partition("\n")[0].rstrip(".").partition(" on ")
    said = {label: " ".join(value.split()).removesuffix(".") for label, value in LABELLED.findall(text)}
    return Described(
        name=node.name,
        model=model,
        data=data,
        source=said.get("Source", ""),
        expected=said.get("Expected", ""),
        cost=said.get("Cost", ""),
        command=said.get("Command", ""),
        text=text,
        family=family,
    )


def changed(config: Config, default: Config) -> Iterator[Field]:
    """The fields that make `default` into `config` when they are typed on the command line, in the order of the source.

    Where a field holds another class, its fields are compared with that class's own defaults.
    """
    documents = {field.path: field.doc for field in walk(config)}

    def different(config: Config, default: Config, prefix: str) -> Iterator[Field]:
        for field in fields(config):
            path, value, usual = prefix + field.name, getattr(config, field.name), getattr(default, field.name)
            if isinstance(value, Config):
                if type(value) is not type(usual):
                    usual = type(value)()
                    yield Field(path, type(value).__name__, documents[path])
                yield from different(value, usual, f"{path}.")
            elif value != usual:
                yield Field(path, value, documents[path])

    return different(config, default, "")
