"""The application that the commands join, and what they share."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import vitreous
from vitreous.errors import InputError


def whole(kind: type, tokens: Any) -> int:
    """An int from the command line; cyclopts would cut 4.5 to 4."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise InputError(f"{tokens[0].keyword} takes a whole number, got {tokens[0].value!r}") from None


Whole = Annotated[int, Parameter(converter=whole)]
TrainedModel = Annotated[
    str,
    Parameter(help="A run, a model folder, a weights file, timm:NAME.TAG, hf:OWNER/NAME or google:DIRECTORY/NAME.npz."),
]
ClassNames = Annotated[
    str | None,
    Parameter(
        help="A file with the model's class names, one a line in the order of its outputs, if the weights have none."
    ),
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, mps; by default the accelerator if there is one.")]

app = App(
    name="vitreous",
    version=vitreous.__version__,
    help="The Vision Transformer, whole and see-through. Start with: vitreous fit FOLDER-OF-PHOTOS",
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
)


def print_json(value: Any) -> None:
    """The one answer of a command that is asked for JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def class_names(file: str | None) -> list[str] | None:
    """The lines of a file."""
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {file}: {error}; give a text file, one name a line") from None


def changes(tokens: tuple[str, ...]) -> list[tuple[str, str]]:
    """Field names and values from `--a.b value` and `--a.b=value`."""
    rest, pairs = list(tokens), []
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if not name.startswith("--"):
            raise InputError(f"a field is changed by --name value, got {token!r}")
        if not equals:
            if not rest:
                raise InputError(f"{name} needs a value")
            value = rest.pop(0)
        pairs.append((name[2:].replace("-", "_"), value))
    return pairs
