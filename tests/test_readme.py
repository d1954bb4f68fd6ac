"""The commands and the Python of the README and of docs/ do what they say."""

import re
import shlex
import shutil
import subprocess

import pytest

from conftest import REPOSITORY
from vitreous import planning

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_can_be_typed(page, vitreous, photos, trained, monkeypatch):
    monkeypatch.setattr(planning, "TIME_FOR_STEPS", 1e-9)  # as few steps as there are
    monkeypatch.setattr(planning, "PROBE_S", 0.05)
    shutil.copytree(photos, "photos")
    if not any("vitreous fit photos\n" in text for text in blocks(page, "sh")):
        shutil.copytree(trained, "runs/photos")
    for text in blocks(page, "sh"):
        for line in text.splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "vitreous"
            answer = vitreous(*words)
            assert answer.code == 0, answer.err
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), {"__name__": "__main__"})


def test_links_lead_somewhere():
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_has_its_line_in_the_readme(vitreous):
    shown = set(re.findall(r"^\| `vitreous (\w+)", PAGES[0].read_text("utf-8"), re.MULTILINE))
    listed = set(re.findall(r"^│ (\w+) ", vitreous("--help").out, re.MULTILINE))
    assert listed - shown == {"demo"}  # `make demo` stands above


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("target", "command"), [("demo", "vitreous demo"), ("test", "python -m pytest")])
def test_make_leads_to_the_command(target, command):
    assert target in re.findall(r"^make (\w+)", PAGES[0].read_text("utf-8"), re.MULTILINE)
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert command in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_whether_it_can_be_typed(page):
    fences = re.findall(r"^```(\w*)$", page.read_text("utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"sh", "python", "text"}
    assert set(fences[1::2]) <= {""}
