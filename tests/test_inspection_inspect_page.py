"""The page of a checkpoint in a real browser, without a network."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from example_inspection import example_model, example_pictures
from vitreous.inspection.attention import full_attention
from vitreous.inspection.checkpoint import inspect_checkpoint
from vitreous.inspection.checkpoint_page import checkpoint_page
from vitreous.inspection.lens import logit_lens
from vitreous.inspection.pictures import HEAT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

PICTURES = example_pictures(3)
LONG = ("a class with a very long name indeed, longer than any column", "Unbroken" * 12, "eel")


@pytest.fixture(scope="module")
def models():
    return [example_model(classes=LONG), example_model(seed=1, num_registers=1, image_size=48)]


@pytest.fixture(scope="module")
def looks(models):
    files = ["photos/" + "long" * 30 + ".png", "b.png", "c.png"]
    names = ("Unbroken" * 9, "other")
    return [
        (model, inspect_checkpoint(model, PICTURES, name=name, files=files, layers=None))
        for model, name in zip(models, names)
    ]


@pytest.fixture(scope="module")
def addresses(looks, tmp_path_factory) -> dict[int, str]:
    folder, found = tmp_path_factory.mktemp("pages"), {}
    for number in (1, 2):
        path = folder / f"{number}.html"
        path.write_bytes(checkpoint_page(looks[:number], command="vitreous inspect x IMAGES --page"))
        found[number] = path.as_uri()
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, addresses):
    """Opens the page of one model or of two, and gives it with what it asked for and complained about."""
    contexts = []

    def go(number: int = 1, *, width: int = 1200, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(addresses[number])
        settle(page)
        return page

    yield go
    for context in contexts:
        context.close()


def settle(page) -> None:
    page.wait_for_selector("html:not([aria-busy])")


def weights(look, *, image: int = 0) -> torch.Tensor:
    """(layer, head, token, token) of an image, from the Python API."""
    model, seen = look
    return full_attention(model.module, model.view.normalise(seen.pixels[image][None]))[:, 0]


def shown(page, *, panel: int = 0) -> np.ndarray:
    """The weights that the large map is drawn from."""
    return np.array(page.evaluate(f"panels[{panel}].shown"))


def pixels(page, selector: str) -> np.ndarray:
    """The colours of a canvas: (row, column, 3)."""
    return np.array(
        page.eval_on_selector(
            selector,
            "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return [c.height, c.width, ...d]; }",
        )
    )


def colours(page, selector: str) -> np.ndarray:
    height, width, *values = pixels(page, selector).tolist()
    return np.array(values).reshape(height, width, 4)[..., :3]


def drawn(map_: torch.Tensor) -> np.ndarray:
    """The colours that a map should have: square root of its share of the largest, dark to bright."""
    value = (map_ / map_.max()).sqrt().numpy()
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(value, stops, [colour[c] for colour in HEAT]) for c in range(3)], axis=-1)


def click_patch(page, row: int, column: int, *, panel: int = 0, grid: int = 4) -> None:
    place = page.locator(".patches").nth(panel)
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    place.click(position={"x": (column + 0.5) * box["width"] / grid, "y": (row + 0.5) * box["height"] / grid})
    settle(page)


def test_the_page_opens_without_a_request_or_a_complaint(visit, addresses):
    for number in (1, 2):
        page = visit(number)
        page.wait_for_load_state("networkidle")
        assert [url for url in page.requests if not url.startswith("data:")] == [addresses[number]]
        assert page.complaints == []
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_a_click_on_a_patch_shows_the_numbers_of_the_python_api(visit, looks):
    page, expected = visit(), weights(looks[0])
    click_patch(page, 1, 3)
    row = expected[1, 0, 1 + 7]  # the class token first, then patches in raster order
    assert np.abs(shown(page) - row.numpy()).max() <= 1.001 * row.max() / 255
    said = page.locator("#said-0").inner_text()
    best = int(row[1:].argmax())
    assert said.startswith("Row 1, column 3 in layer 1, head 0")
    assert f"row {best // 4}, column {best % 4}" in said
    assert float(said.split("; ")[1].split(" %")[0]) == pytest.approx(100 * row[0].item(), abs=0.41)


def test_every_small_map_is_drawn_in_the_colours_of_its_weights(visit, looks):
    page, expected = visit(), weights(looks[0])
    click_patch(page, 2, 0)
    for layer in (0, 1):
        for head in range(4):
            cell = f".maps [aria-label='Layer {layer}, head {head}'] canvas"
            map_ = expected[layer, head, 1 + 8, 1:].view(4, 4)
            assert np.abs(colours(page, cell) - drawn(map_)).max() <= 4  # of 255: the scale has 256 steps
    large = colours(page, ".large")
    np.testing.assert_array_equal(large, colours(page, ".maps [aria-selected='true'] canvas"))


def test_arrow_keys_move_over_patches_and_stop_at_the_edge(visit, looks):
    page, expected = visit(), weights(looks[0])
    click_patch(page, 0, 2)
    page.locator(".patches").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
        settle(page)
    row = expected[1, 0, 1 + 4 + 2]
    assert page.locator("#said-0").inner_text().startswith("Row 1, column 2")
    assert np.abs(shown(page) - row.numpy()).max() <= 1.001 * row.max() / 255
    mark, box = (page.locator(selector).first.bounding_box() for selector in (".looking .mark", ".patches"))
    assert mark["x"] - box["x"] == pytest.approx(box["width"] / 2, abs=1.5)
    assert mark["y"] - box["y"] == pytest.approx(box["height"] / 4, abs=1.5)


def test_the_tokens_before_the_patches_can_ask_too(visit, looks):
    page, expected = visit(), weights(looks[0])
    page.locator(".queries [role=radio]").nth(1).click()
    settle(page)
    assert np.abs(shown(page) - expected[1, 0, 0].numpy()).max() <= 1.001 * expected[1, 0, 0].max() / 255
    assert page.locator("#said-0").inner_text().startswith("The class token in layer 1")
    assert not page.locator(".looking .mark").first.is_visible()
    page.keyboard.press("ArrowLeft")
    settle(page)
    assert page.locator(".queries [aria-checked=true]").inner_text() == "patch"


def test_a_head_is_chosen_by_click_by_key_and_by_its_dot(visit, looks):
    page, expected = visit(), weights(looks[0])
    click_patch(page, 3, 3)
    query = 1 + 15
    page.locator(".maps [aria-label='Layer 0, head 2']").click()
    settle(page)
    assert np.abs(shown(page) - expected[0, 2, query].numpy()).max() < 0.005
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    settle(page)
    assert np.abs(shown(page) - expected[1, 3, query].numpy()).max() < 0.005
    assert page.locator(".maps [tabindex='0']").count() == 1
    page.locator(".charts .head[data-layer='0'][data-head='1']").first.dispatch_event("click")
    settle(page)
    assert page.locator(".maps [aria-selected='true']").get_attribute("aria-label") == "Layer 0, head 1"
    assert page.locator(".charts .head.on").count() == 3  # distance, entropy, share of the prefix


def test_another_image_has_its_own_attention_and_picture(visit, looks):
    page = visit()
    click_patch(page, 1, 1)
    page.locator(".thumbnails button").nth(0).focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    row = weights(looks[0], image=1)[1, 0, 1 + 5]
    assert np.abs(shown(page) - row.numpy()).max() <= 1.001 * row.max() / 255
    assert page.locator(".seen:visible").get_attribute("alt") == "b.png"
    assert page.evaluate("document.activeElement.dataset.image") == "1"


def test_the_lens_reads_the_chosen_patch_at_every_layer(visit, looks):
    page, (model, seen) = visit(), looks[0]
    click_patch(page, 2, 1)
    shares = logit_lens(model.module, model.view.normalise(seen.pixels[0][None])).exp()[:, 0, 1 + 9]
    rows = page.locator(".lens tbody tr")
    assert rows.count() == 2
    for layer in (0, 1):
        assert rows.nth(layer).locator(".name").inner_text() == LONG[shares[layer].argmax()]
        said = rows.nth(layer).locator(".number").inner_text()
        assert float(said.removesuffix(" %")) == pytest.approx(100 * shares[layer].max().item(), abs=0.06)


def test_a_tile_of_positions_follows_the_patch_and_chooses_it(visit, looks):
    page, seen = visit(), looks[0][1]
    frame = page.locator(".mosaic-frame")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    frame.click(position={"x": 2.5 * box["width"] / 4, "y": 0.5 * box["height"] / 4})
    settle(page)
    others = seen.positions[0, 2].flatten()[[i for i in range(16) if i != 2]]
    said = page.locator("#cosine-0").inner_text()
    assert said.startswith("Row 0, column 2")
    low, high = (float(word) for word in said.rpartition("from ")[2].split(" to "))
    assert (low, high) == pytest.approx((others.min().item(), others.max().item()), abs=0.01)
    assert page.locator("#said-0").inner_text().startswith("Row 0, column 2")
    page.keyboard.press("ArrowDown")
    settle(page)
    assert page.locator("#cosine-0").inner_text().startswith("Row 1, column 2")


def test_two_models_are_asked_the_same_place(visit, looks):
    page = visit(2)
    click_patch(page, 3, 0)  # of 4 x 4; row 5, column 0 of 6 x 6
    ours, theirs = weights(looks[0])[1, 0, 1 + 12], weights(looks[1])[1, 0, 2 + 5 * 6 + 0]
    assert np.abs(shown(page, panel=0) - ours.numpy()).max() <= 1.001 * ours.max() / 255
    assert np.abs(shown(page, panel=1) - theirs.numpy()).max() <= 1.001 * theirs.max() / 255
    page.locator(".panel").nth(1).locator("[aria-label='Layer 0, head 3']").click()
    settle(page)
    chosen = page.locator(".maps [aria-selected='true']")
    assert [chosen.nth(i).get_attribute("aria-label") for i in (0, 1)] == ["Layer 0, head 3"] * 2
    page.locator(".panel").nth(1).locator(".queries button").nth(2).click()  # a register, which the first has not
    settle(page)
    starts = [page.locator(f"#said-{i}").inner_text().partition(" in ")[0] for i in (0, 1)]
    assert starts == ["Row 3, column 0", "The register 1"]
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1200])
def test_no_width_makes_the_page_scroll_sideways(visit, width, scheme):
    for number in (1, 2):
        assert visit(number, width=width, scheme=scheme).evaluate("document.documentElement.scrollWidth") <= width


def test_the_overlay_fades_and_the_brightest_can_be_cut(visit):
    page = visit()
    page.locator("#opacity").fill("20")
    assert page.eval_on_selector(".large", "e => getComputedStyle(e).opacity") == "0.2"
    before = colours(page, ".large")
    page.locator("#cut").check()
    settle(page)
    assert (colours(page, ".large").sum(axis=-1) >= before.sum(axis=-1)).all()


def test_what_can_be_focused_shows_that_it_is(visit):
    page = visit(scheme="dark")
    for selector in (".patches", ".mosaic-frame", ".maps [tabindex='0']", ".queries [tabindex='0']"):
        page.locator(selector).first.focus()
        page.keyboard.press("Shift")  # as if it had been reached by key
        assert page.eval_on_selector(selector, "e => getComputedStyle(e).outlineStyle") == "solid", selector
