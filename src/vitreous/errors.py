"""What a user can do wrong, said in one line."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one line: what was given, what was needed, what to do. The command line prints it
    as it is and exits with 2; any other exception is a bug of ours.
    """


class SaidElsewhere(InputError):
    """Another process of this run has said what was wrong; this one ends in silence."""


def some(names: Sequence[str], *, most: int = 5) -> str:
    """The first of `names` in a sentence, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def did_you_mean(name: str, choices: Iterable[str], *, most: int = 3) -> str:
    """`"; did you mean A or B?"` for the choices nearest to `name`, or their list when none is near."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, most, 0.6)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; choose one of {', '.join(choices)}" if choices else ""
