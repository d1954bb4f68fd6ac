"""A page on what is wrong with a data set: one file that opens anywhere, with pictures of what was found."""

from typing import Any

from markupsafe import Markup

from vitreous.data.check import Check, Place
from vitreous.errors import InputError
from vitreous.inspection.pictures import picture
from vitreous.inspection.template import page_file, template

THUMBNAIL_PX = 160
MOST_GROUPS = 20
"""Of each kind of finding."""
MOST_IN_GROUP = 6


def data_page(check: Check, *, name: str) -> bytes:
    """The page of a check of the data that the user calls `name`; no script is in it, and nothing is fetched."""
    summary = check.summary()
    counts = {
        label: [facts["classes"][label] for facts in summary["splits"].values()]
        for label in check.sources["train"].classes
    }
    page = template("data.html.jinja").render(
        name=name,
        splits=summary["splits"],
        counts=counts,
        largest=max((max(numbers) for numbers in counts.values()), default=1) or 1,
        findings=[
            {
                "what": finding.what,
                "count": len(finding.groups),
                "severe": finding in check.severe,
                "groups": [
                    {
                        "reason": finding.reasons[k] if finding.reasons else "",
                        "images": [_image(check, place) for place in group[:MOST_IN_GROUP]],
                        "more": len(group) - len(group[:MOST_IN_GROUP]),
                    }
                    for k, group in enumerate(finding.groups[:MOST_GROUPS])
                ],
            }
            for finding in check.findings
        ],
        num_images=check.num_images,
        num_severe=len(check.severe),
        seconds=check.seconds,
        notes=check.notes,
        css=Markup(page_file("report.css")),
    )
    return page.encode("utf-8", "replace")  # a file name may hold bytes that are no text


def _image(check: Check, place: Place) -> dict[str, Any]:
    """A picture with its name; without a picture where the file gives none."""
    split, i = place
    source = check.sources[split]
    try:
        shown = picture(source.image(i, min_side=THUMBNAIL_PX), side=THUMBNAIL_PX)
    except (InputError, OSError):
        shown = None
    return {"picture": shown, "file": source.name(i), "split": split, "label": check.label(place)}
