"""The command that looks for what is wrong with data: data check."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitreous.cli.app import print_json
from vitreous.cli.data import data as commands
from vitreous.errors import InputError
from vitreous.run_state import visible
from vitreous.tables import table

if TYPE_CHECKING:
    from vitreous.data.check import Check, Finding

EXIT_FOUND = 3
SHOWN = 5


@commands.command
def check(
    data: str, /, *, val: str | None = None, strict: bool = False, json: bool = False, page: str | None = None
) -> int:
    """Look at every image: classes, sizes, broken files, copies, and what stands both in train and in what is held out.

    Parameters
    ----------
    data
        Images, as for fit; without labels too.
    val
        Other data to measure on, in place of what DATA holds out.
    strict
        Leave with exit code 3 if files are unreadable, splits or classes share images, or over 1 % are copies.
    json
        Print a JSON object.
    page
        Write a page with pictures of what was found: FILE.html.
    """
    from vitreous.console import Console
    from vitreous.data.check import check as look_at
    from vitreous.files import check_writable, write_bytes

    if page is not None:
        if not page.lower().endswith((".html", ".htm")):
            raise InputError(f"--page takes the name of a page, such as check.html, got {page!r}")
        check_writable(Path(page))
    console = Console()
    console.say(f"looking at {data}")
    with console.task("image", 0) as task:
        found = look_at(data, val=val, progress=task.follow)
    if page is not None:
        from vitreous.inspection.data_page import data_page

        write_bytes(Path(page), data_page(found, name=data))
    if json:
        print_json(found.summary())
    else:
        print(f"{table([tuple(map(visible, row)) for row in split_rows(found)])}\n\n{table(finding_rows(found))}")
        for line in examples(found):
            print(line)
        for note in found.notes:
            print(f"\nnote: {visible(note)}")
        if page is not None:
            print(f"page: {page}")
        console.say(f"{found.num_images:,} images in {found.seconds:.1f} s, {found.num_images / found.seconds:,.0f}/s")
    return EXIT_FOUND if strict and found.severe else 0


def split_rows(found: "Check") -> list[tuple[str, ...]]:
    """What each split holds, a column for each."""
    parts = found.summary()["splits"]
    columns = []
    for facts in parts.values():
        counts = sorted(facts["classes"].items(), key=lambda item: item[1])
        (fewest, low), (most, high) = (counts[0], counts[-1]) if counts else (("", 0), ("", 0))
        sizes = facts["sizes"]
        extent = {key: " x ".join(f"{side[key]:.0f}" for side in sizes.values()) for key in ("min", "median", "max")}
        columns.append(
            (
                f"{facts['num_images']:,}",
                f"{len(counts):,}",
                f"{low:,}" + (f" ({fewest})" if low < high else ""),
                f"{high:,}" + (f" ({most})" if low < high else ""),
                "-" if facts["imbalance"] is None else f"{facts['imbalance']:.1f}",
                *(extent[key] or "-" for key in ("min", "median", "max")),
                ", ".join(f"{kind} {count:,}" for kind, count in facts["formats"].items()) or "-",
                ", ".join(f"{kind} {count:,}" for kind, count in facts["modes"].items()) or "-",
                f"{facts['grey']:,}",
                f"{facts['rotated']:,}",
            )
        )
    names = (
        *("images", "classes", "smallest class", "largest class", "largest / smallest"),
        *("smallest sides", "median sides", "largest sides", "formats", "modes", "without colour", "turned by EXIF"),
    )
    return [("", *parts), *zip(names, *columns)]


def finding_rows(found: "Check") -> list[tuple[str, ...]]:
    """Each kind of finding, how many there are, and whether a trainer must know."""
    rows = [("found", "number", "")]
    for finding in found.findings:
        rows.append((finding.what, f"{len(finding.groups):,}", "!" if finding in found.severe else ""))
    return rows


def examples(found: "Check") -> Iterator[str]:
    """A few lines on each kind of finding."""
    for finding in found.findings:
        if finding.groups:
            yield f"\n{finding.what}"
        for group, reason in zip(finding.groups[:SHOWN], finding.reasons or ("",) * SHOWN):
            names = " = ".join(_named(found, place, finding) for place in group[:3])
            more = f" and {len(group) - 3:,} more" if len(group) > 3 else ""
            yield f"  {names}{more}" + (f": {reason}" if reason else "")
        if (more := len(finding.groups) - SHOWN) > 0:
            yield f"  and {more:,} more"


def _named(found: "Check", place: tuple[str, int], finding: "Finding") -> str:
    name = visible(found.sources[place[0]].name(place[1]))
    told = found.label(place) if "labels" in finding.what else place[0] if "across" in finding.what else ""
    return f"{name} ({visible(told)})" if told else name
