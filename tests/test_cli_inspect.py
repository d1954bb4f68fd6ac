"""vitreous inspect: what it writes, what it says, and one line for whatever cannot be done."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vitreous import predict
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.pooling import Mean
from vitreous.resnet import ResNetConfig
from vitreous.weights.product import Product, save_product

FIGURES = ("positions", "filters", "distance", "entropy", "norms", "rollout", "features", "lens", "explanations")


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A finished run of our own, into which we may write."""
    folder = tmp_path_factory.mktemp("inspected") / "run"
    shutil.copytree(trained, folder)
    return folder


def test_figures_and_numbers_of_every_part(vitreous, run, photos, tmp_path):
    out = tmp_path / "look"
    answer = vitreous("inspect", run, photos, "--gallery", photos, "--max-images", "12", "--out", out)
    assert answer.code == 0, answer.err
    names = {*FIGURES, "faithfulness", "attention-layer-1", "layout", "neighbours"}
    assert {p.name for p in out.iterdir()} == {"inspect.json", *(f"{n}.{k}" for n in names for k in ("pdf", "png"))}
    record = json.loads((out / "inspect.json").read_text())
    assert record["checkpoints"][0]["classes"] == ["sea", "sky", "wall"]
    assert len(record["checkpoints"][0]["files"]) == 12
    lines = answer.out.splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert lines[-1] == f"27 files in {out}"
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]


def test_json_tells_what_the_table_tells(vitreous, run, photos):
    only = ("--only", "distance,norms", "--max-images", "5")
    facts = json.loads(vitreous("inspect", run, photos / "sea", *only, "--json").out)
    shown = vitreous("inspect", run, photos / "sea", *only).out.splitlines()
    assert facts["images"] == 5
    first = facts["layers"][0]
    assert shown[1].split()[1:4] == [f"{first[k]:.1f}" for k in ("distance_px", "lowest_px", "highest_px")]
    assert facts["written"].endswith("report/inspect")


def test_a_run_shows_what_it_held_out_and_the_report_links_to_the_page(vitreous, run):
    report = run / "report" / "index.html"
    vitreous("report", run)
    assert f"vitreous inspect {run} --page" in report.read_text("utf-8")
    answer = vitreous("inspect", run, "--page")
    assert answer.code == 0, answer.err
    assert "looking at 15 images" in answer.err
    page = run / "report" / "inspect" / "index.html"
    assert 'id="attention-0-5"' in page.read_text("utf-8")
    assert answer.out.rstrip().endswith(f"open {page}")
    vitreous("report", run)
    assert 'href="inspect/index.html"' in report.read_text("utf-8")
    assert f"vitreous inspect {run} --page" not in report.read_text("utf-8")


def test_a_page_needs_no_matplotlib(vitreous, run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert vitreous("inspect", run, "--page").code == 0
    answer = vitreous("inspect", run)
    assert answer.code == 2
    assert "vitreous[plot]" in answer.err


def test_without_images_positions_filters_and_parameters(vitreous, run):
    answer = vitreous("inspect", run / "model" / "model.safetensors", "--only", "positions,filters")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[0].split() == ["part", "parameters"]
    facts = json.loads(vitreous("inspect", run / "model", "--json", "--out", "other").out)
    assert set(facts["left_out"]) >= {"distance", "lens"}
    assert facts["parameters"]["prefix"] == 32


def test_two_models_on_a_page(vitreous, run, photos, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "model", other)
    answer = vitreous("inspect", run, photos / "sea", "--page", "--against", other, "--out", "pair")
    assert answer.code == 0, answer.err
    checkpoints = json.loads((tmp_path / "here" / "pair" / "inspect.json").read_text())["checkpoints"]
    assert [each["name"] for each in checkpoints] == ["run", "other"]


def test_layers_and_heads_can_be_chosen(vitreous, run, photos):
    asked = ("--only", "attention", "--layers", "0,-1,1", "--heads", "-1")
    answer = vitreous("inspect", run, photos / "sea" / "sea1.png", *asked, "--out", "chosen", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(Path("chosen/inspect.json").read_text())["checkpoints"][0]
    assert (record["layers"], record["heads"]) == ([0, 1], [0])


def test_what_inspect_wrote_is_replaced_whole_and_nothing_else_is(vitreous, run, tmp_path):
    out = tmp_path / "look"
    assert vitreous("inspect", run, "--only", "positions", "--out", out).code == 0
    assert vitreous("inspect", run, "--only", "filters", "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == {"filters.pdf", "filters.png", "inspect.json"}
    (out / "notes.txt").write_text("mine")
    answer = vitreous("inspect", run, "--only", "positions", "--out", out)
    assert answer.code == 2
    assert "notes.txt" in answer.err
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [({"a.txt": b"x"}, "did not write (a.txt)"), ({"inspect.json": b"{}"}, "did not write (inspect.json)")],
)
def test_a_folder_of_someone_else_stays_as_it_is(content, message, vitreous, run, tmp_path):
    for name, data in content.items():
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_bytes(data)
    answer = vitreous("inspect", run, "--only", "positions", "--out", tmp_path / "theirs")
    assert answer.code == 2
    assert message in answer.err
    assert {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir()} == content


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--only", "distanse"), "did you mean distance"),
        (("--only", "distance"), "give files or folders"),
        (("nowhere.png",), "there is no file nowhere.png"),
        (("--layers", "first"), "--layers takes whole numbers"),
        (("--layers", "7", "--only", "positions"), "no layers [7]"),
        (("--heads", "99"), "no heads [99]"),
        (("--against", "x"), "--page"),
        (("--page", "--against", "nowhere"), "there is no model"),
        (("--max-images", "0"), "--max-images must be at least 1"),
        (("--batch-size", "-1"), "--batch-size must be at least 1"),
        (("--gallery", "nowhere", "--only", "neighbours"), "nowhere"),
        (("--layout", "pca"), "--layout"),
        (("--out", ""), "--out"),
        (("--out", "here.png"), "is a file"),
        (("--classes", "nowhere.txt"), "class names"),
        (("--device", "gpu0"), "device"),
    ],
)
def test_a_slip_ends_in_one_line_that_helps(arguments, hint, vitreous, run, tmp_path):
    (tmp_path / "here" / "here.png").write_bytes(b"")
    answer = vitreous("inspect", run / "model", *arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert hint in answer.err.splitlines()[-1]


def test_an_image_that_cannot_be_read_is_named(vitreous, run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    answer = vitreous("inspect", run, tmp_path / "broken.jpg", "--out", "look")
    assert answer.code == 2
    assert "broken.jpg" in answer.err.splitlines()[-1]
    assert not (tmp_path / "here" / "look").exists()


def test_a_resnet_is_refused_in_one_line(vitreous, tmp_path, photos):
    config = ClassifierConfig(encoder=ResNetConfig(units=(1,), image_size=32), pooling=Mean(), num_classes=2)
    view = EvalView(image_size=32)
    save_product(tmp_path / "resnet", Product(config.build(), view=view, classes=("sea", "sky")))
    answer = vitreous("inspect", tmp_path / "resnet", photos / "sea")
    assert answer.code == 2
    assert "inspect takes a ViT" in answer.err.splitlines()[-1]


def test_a_run_whose_images_are_gone_is_looked_at_without(vitreous, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (moved / "split.csv").unlink()
    answer = vitreous("inspect", moved, "--page")
    assert answer.code == 0, answer.err
    assert "give images" in answer.err
    assert "No images." in (moved / "report" / "inspect" / "index.html").read_text("utf-8")


def test_an_encoder_without_a_head_is_looked_at_as_far_as_it_goes(vitreous, run, photos, tmp_path):
    tensors = load_file(run / "model" / "model.safetensors")
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    save_file(headless, tmp_path / "encoder.safetensors")
    facts = json.loads(vitreous("inspect", tmp_path / "encoder.safetensors", photos / "sea", "--json").out)
    assert "without a head" in facts["left_out"]["lens"]
    assert len(facts["layers"]) == 2


def test_an_image_that_cannot_be_read_is_left_out_and_named(trained, photos, vitreous, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    words = (tmp_path / "broken.png", photos / "sea" / "sea0.png", photos / "sky" / "sky0.png")
    answer = vitreous("inspect", trained, *words, "--only", "distance", "--page", "--out", tmp_path / "seen", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["images"] == 2
    assert "left out:" in answer.err
    assert "broken.png" in answer.err


def test_class_names_that_are_given_name_the_second_model_too_and_it_is_opened_once(
    trained, photos, vitreous, tmp_path, monkeypatch
):
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(trained / "model" / "model.safetensors"), bare)
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    opened, real = [], predict.load
    monkeypatch.setattr(predict, "load", lambda name, **options: opened.append(str(name)) or real(name, **options))
    words = ("--page", "--against", bare, "--classes", tmp_path / "names.txt", "--only", "lens")
    answer = vitreous("inspect", bare, photos / "sea" / "sea0.png", *words, "--out", tmp_path / "seen")
    assert answer.code == 0, answer.err
    record = json.loads((tmp_path / "seen" / "inspect.json").read_text())
    assert [each["classes"] for each in record["checkpoints"]] == [["x", "y", "z"]] * 2
    assert opened == [str(bare)] * 2
