"""The report page in a real browser, without a network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from example_run import VIEW, example_classifier, example_run
from vitreous.inspection.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    run = tmp_path_factory.mktemp("runs") / "photos"
    classes = ("cat", "dog", "a class with a very long name indeed, longer than any column", "Unbroken" * 12)
    data = example_run(run, classes=classes, num_images=120)
    path = write_report(run, data=data, classifier=example_classifier(num_classes=4), view=VIEW)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page and gives it with what it asked for and complained about."""
    contexts = []

    def go(*, width: int = 1200, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            offline=True,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()


def column(page, index: int) -> list[str]:
    return page.eval_on_selector_all(".sortable tbody tr", f"rows => rows.map(r => r.cells[{index}].innerText)")


def test_the_page_opens_without_a_request_or_a_complaint(visit, address):
    page = visit()
    page.wait_for_load_state("networkidle")
    assert [url for url in page.requests if not url.startswith("data:")] == [address]
    assert page.complaints == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1200])
def test_no_width_makes_the_page_scroll_sideways(visit, width, scheme):
    page = visit(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light_have_enough_contrast(visit):
    for scheme in ("light", "dark"):
        page = visit(scheme=scheme)
        for selector in ("body", ".lede", ".figures dt", ".thumbs .said b", ".big"):
            ink, paper = page.eval_on_selector(
                selector,
                "e => [e, e.closest('section') || e].map(each => getComputedStyle(each))"
                ".map((style, i) => (i ? style.backgroundColor : style.color))",
            )
            assert contrast(ink, paper) >= 4.5, f"{selector} in {scheme}: {ink} on {paper}"


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio of two rgb() colours."""

    def luminance(colour: str) -> float:
        rgb = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_heading_sorts_by_click_and_by_key(visit):
    page = visit()
    headings = page.locator(".sortable thead button")
    assert column(page, 4) == sorted(column(page, 4), key=float)
    headings.nth(2).click()
    assert column(page, 2) == sorted(column(page, 2), key=float, reverse=True)
    assert page.locator(".sortable th").nth(2).get_attribute("aria-sort") == "descending"
    headings.nth(2).press("Enter")
    assert column(page, 2) == sorted(column(page, 2), key=float)
    headings.nth(0).focus()
    page.keyboard.press("Space")
    assert column(page, 0) == sorted(column(page, 0), key=str.lower)
    assert page.locator(".sortable th[aria-sort]").count() == 1
    assert page.locator("#sorted").inner_text() == "Sorted by Class, ascending"


def test_a_chart_is_read_by_pointer_and_by_key(visit):
    page = visit()
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    at_rest = chart.locator(".legend").inner_text()
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    step = int(chart.locator(".at").inner_text().removeprefix("step "))
    assert 180 < step < 220
    assert float(chart.locator(".legend b").first.inner_text()) == pytest.approx(2 / (1 + step / 40), rel=1e-3)
    page.mouse.move(0, 0)
    assert chart.locator(".legend").inner_text() == at_rest
    chart.locator("svg").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert chart.locator(".at").inner_text() == "step 8"


def test_the_slider_fades_the_attention(visit):
    page = visit()
    page.locator("#opacity").fill("20")
    shades = page.eval_on_selector_all(".heat", "all => all.map(e => getComputedStyle(e).opacity)")
    assert shades == ["0.2"] * 12


def test_it_prints_without_controls(visit, tmp_path: Path):
    page = visit()
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#opacity").is_visible()
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
