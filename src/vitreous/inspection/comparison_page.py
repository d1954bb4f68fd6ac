"""The page of a comparison of runs: figures, fields and curves in one file that opens anywhere, without a network."""

from markupsafe import Markup

from vitreous.comparison import Comparison
from vitreous.comparison_rows import curves_of, field_rows, figure_rows, group_rows, is_share
from vitreous.inspection.plots import Series, line_chart
from vitreous.inspection.template import page_file, script_hash, template


def comparison_page(comparison: Comparison) -> bytes:
    """The page, in UTF-8."""
    charts = [
        line_chart(
            [Series(run, [step for step, _ in points], [value for _, value in points]) for run, points in curves],
            title=name,
            percent=is_share(name),
        )
        for name, curves in curves_of(comparison)
    ]
    script = page_file("report.js")
    page = template("comparison.html.jinja").render(
        num_runs=len(comparison.runs),
        tables=[
            ("Figures", figure_rows(comparison)),
            ("Over seeds", group_rows(comparison)),
            ("What was set otherwise", field_rows(comparison)),
        ],
        notes=comparison.notes,
        charts=[chart for chart in charts if chart],
        css=Markup(page_file("report.css") + page_file("comparison.css")),
        js=Markup(script),
        js_hash=script_hash(script),
    )
    return page.encode("utf-8", "replace")  # a path may hold bytes that are no text
