"""The commands. Results go to stdout, progress to stderr; heavy imports wait inside the functions."""

import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code, also if it is interrupted before it has begun."""
    try:
        from vitreous.cli.exit import main as run
    except KeyboardInterrupt:
        print("vitreous: stopped before anything was done", file=sys.stderr)
        sys.exit(130)
    run(arguments)
