"""The command that sets runs side by side: runs compare."""

from pathlib import Path

from vitreous.cli.app import print_json
from vitreous.cli.runs import runs_app
from vitreous.run_state import visible
from vitreous.tables import table


@runs_app.command
def compare(*folders: str, json: bool = False, page: str | None = None) -> int:
    """Set runs side by side: what differs in their configs, what they reached, how fast, and their curves.

    Runs that differ by their seeds alone are also averaged, with a 95 % interval over the seeds.

    Parameters
    ----------
    folders
        Two runs or more, or a folder that holds them.
    json
        Print all of it as JSON.
    page
        Write a page with curves into this .html file.
    """
    from vitreous.comparison import compare as side_by_side
    from vitreous.comparison_rows import curve_rows, field_rows, figure_rows, group_rows
    from vitreous.errors import InputError
    from vitreous.files import check_writable, write_bytes

    if page is not None:
        if Path(page).suffix.lower() not in (".html", ".htm"):
            raise InputError(f"--page writes a page, so give it a name that ends in .html, not {visible(page)}")
        check_writable(Path(page))
    found = side_by_side([Path(folder) for folder in folders])
    if json:
        print_json(found.to_dict())
    else:
        groups, fields = group_rows(found), field_rows(found)
        same = [("the configs are the same",)]
        for rows in (figure_rows(found), groups, fields if fields[1:] else same, *curve_rows(found)):
            if rows:
                print(table([tuple(map(visible, row)) for row in rows]), end="\n\n")
        print("".join(f"({visible(note)})\n" for note in found.notes), end="")
    if page is not None:
        from vitreous.inspection.comparison_page import comparison_page

        write_bytes(Path(page), comparison_page(found))
    return 0
