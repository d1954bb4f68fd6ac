"""What the page of a checkpoint holds, read without a browser."""

import json
import re

import pytest
import torch

from example_inspection import example_model, example_pictures
from vitreous.inspection.attention import full_attention
from vitreous.inspection.checkpoint import inspect_checkpoint
from vitreous.inspection.checkpoint_page import checkpoint_page, keep
from vitreous.inspection.findings import Inspection
from vitreous.inspection.packed_attention import unpacked
from vitreous.predict import Model

PICTURES = example_pictures(3)
EVIL = ("</script><script>alert(1)</script>", "<b>dog</b>", "eel & co")


@pytest.fixture(scope="module")
def model() -> Model:
    return example_model(classes=EVIL)


@pytest.fixture(scope="module")
def seen(model) -> Inspection:
    files = ["<img src=x>.png", "two.png", "bytes \udcff.png"]
    return inspect_checkpoint(model, PICTURES, name="<i>tiny</i>", files=files, layers=None)


@pytest.fixture(scope="module")
def page(model, seen) -> str:
    return checkpoint_page([(model, seen)], command="vitreous inspect tiny IMAGES --page").decode()


def data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def attention(page: str, *shape: int, model: int = 0, image: int = 0) -> torch.Tensor:
    found = re.search(rf'<script type="text/plain" id="attention-{model}-{image}">(.*?)</script>', page)
    assert found is not None
    rows = torch.Size(shape[:-1]).numel()
    raw = unpacked(found[1], "u1").copy()
    largest = torch.from_numpy(raw[: 4 * rows].view("<f4")).view(*shape[:-1], 1)
    return (torch.from_numpy(raw[4 * rows :]).view(shape).float() / 255) ** 2 * largest


def test_the_attention_on_the_page_is_that_of_the_model(page, model, seen):
    for image in range(3):
        expected = full_attention(model.module, model.view.normalise(seen.pixels[image][None]))[:, 0]
        found = attention(page, 2, 4, 17, 17, image=image)
        assert ((found - expected).abs() <= 1.001 * expected.amax(dim=-1, keepdim=True) / 255).all()


def test_the_lens_and_the_positions_are_those_of_the_inspection(page, seen):
    of_model = data(page)["models"][0]
    pairs = torch.from_numpy(unpacked(of_model["lens"][1], "<u2").astype("int64")).view(2, 17, 3, 2)
    assert torch.equal(pairs[..., 0], seen.lens.classes[:, 1])
    assert ((pairs[..., 1] / 65535 - seen.lens.probability[:, 1]).abs() <= 0.51 / 65535).all()
    cosines = torch.from_numpy(unpacked(of_model["positions"], "u1").copy()).float().view(4, 4, 4, 4) / 127.5 - 1
    assert (cosines - seen.positions).abs().max() <= 0.51 / 127.5


def test_names_from_outside_are_text(page):
    assert data(page)["models"][0]["classes"] == list(EVIL)
    markup = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"<(img src=x|b>dog|i>tiny|script>alert)", markup)
    assert page.count("</script>") == 1 + 1 + 3


def test_no_address_of_the_network_stands_on_it(page):
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page) == []
    assert "default-src 'none'" in page


def test_a_page_stays_below_its_limit_and_says_what_it_left_out(model, seen):
    whole = len(checkpoint_page([(model, seen)], command="x"))
    one = len(keep(model, seen, room=10**9).images[0])
    for limit in (whole - 1, whole - one, whole - 2 * one):
        page = checkpoint_page([(model, seen)], command="x", limit=limit)
        assert len(page) <= limit
        assert b"Left out." in page


@pytest.mark.parametrize(("parts", "images", "layers", "heads"), [(2.5, 2, 2, 4), (0.6, 1, 1, 4), (0.2, 1, 1, 1)])
def test_images_go_first_then_layers_then_heads(parts, images, layers, heads, model, seen):
    whole = len(keep(model, seen, room=10**9).images[0])
    kept = keep(model, seen, room=int(parts * whole))
    assert len(kept.images) == images
    assert len(kept.layers) == layers
    assert heads <= len(kept.heads) <= 2 * heads
    assert sum(map(len, kept.images)) <= parts * whole


def test_no_room_no_attention(model, seen):
    assert keep(model, seen, room=10).images == ()


def test_without_images_the_page_says_what_to_type(model):
    page = checkpoint_page([(model, inspect_checkpoint(model))], command="vitreous inspect <x> IMAGES --page").decode()
    assert "vitreous inspect &lt;x&gt; IMAGES --page" in page
    assert 'id="positions"' in page
    assert 'id="layers"' not in page


def test_two_models_share_the_page(model, seen):
    other = example_model(seed=1, num_registers=2, image_size=48)
    second = inspect_checkpoint(other, PICTURES, name="other", files=["a", "b", "c"], layers=None)
    page = checkpoint_page([(model, seen), (other, second)], command="x").decode()
    assert [each["name"] for each in data(page)["models"]] == ["<i>tiny</i>", "other"]
    assert data(page)["models"][1]["grid"] == [6, 6]
    expected = full_attention(other.module, other.view.normalise(second.pixels[2][None]))[:, 0]
    found = attention(page, 2, 4, 39, 39, model=1, image=2)
    assert ((found - expected).abs() <= 1.001 * expected.amax(dim=-1, keepdim=True) / 255).all()
