"""The pages' templates: every text from outside is escaped, and scripts are known by their digest."""

import base64
import hashlib
from importlib.resources import files

import jinja2

from vitreous.console import duration


def page_file(name: str) -> str:
    """The text of a template, style sheet or script."""
    return (files("vitreous.inspection") / "page" / name).read_text("utf-8")


def script_hash(script: str) -> str:
    """What a content security policy calls this script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def template(name: str) -> jinja2.Template:
    """A template that may include others; an unknown name in it is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(page_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share, digits=1: f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%",
        "count": lambda number: f"{number:,}",
        "duration": duration,
    }
    return environment.get_template(name)
