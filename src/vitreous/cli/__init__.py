"""The commands. Results go to stdout, progress to stderr; heavy imports wait inside the functions."""

from vitreous.cli.exit import main

__all__ = ["main"]
