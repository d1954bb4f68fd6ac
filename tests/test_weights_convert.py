import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch

from references import randomise, same_tensors, tiny
from vitreous.block import BranchNorm, Parallel
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import NoPosition, RoPE2d
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.tokens import Encoder
from vitreous.weights.convert import LAYOUTS, Agreement, convert, verify, write
from vitreous.weights.open import open_model
from vitreous.weights.product import Product, load_product, save_product

CLASSES = ("猫", "dog", "c")
VIEW = EvalView(image_size=32, crop_ratio=0.8, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
ONE_HEAD = tiny(num_heads=1)
SUFFIXES = {"google": ".npz"}


def product(encoder: Encoder = ONE_HEAD, *, classes: tuple[str, ...] | None = CLASSES, extra=None, **parts) -> Product:
    config = ClassifierConfig(encoder=encoder, num_classes=len(classes or "1"), **parts)
    return Product(randomise(config.build()), VIEW, classes, {} if extra is None else extra)


def headless() -> Product:
    found = product(classes=None, extra={"headless": True, "assumed": "much"})
    for parameter in found.classifier.head.parameters():
        torch.nn.init.zeros_(parameter)
    return found


@pytest.fixture
def source(tmp_path) -> Path:
    save_product(tmp_path / "source", product())
    return tmp_path / "source"


def test_a_model_comes_back_bit_for_bit_through_all_layouts_one_after_another(source, tmp_path):
    original = load_product(source)
    place = source
    for i, layout in enumerate((*LAYOUTS, *reversed(LAYOUTS))):
        written = convert(str(place), tmp_path / f"{i}", to=layout)
        place = tmp_path / f"{i}"
        again = load_product(place)
        assert same_tensors(again.classifier.state_dict(), original.classifier.state_dict())
        assert again.classifier.config == written.classifier.config == original.classifier.config
        assert (again.view, again.classes, again.golden) == (original.view, original.classes, original.golden)
        assert verify(original, place).difference == 0.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_file_has_the_tensors_bit_for_bit(layout, source, tmp_path):
    path = tmp_path / "files" / f"model{SUFFIXES.get(layout, '.safetensors')}"
    original = convert(str(source), path, to=layout)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    again = open_model(str(path))
    assert same_tensors(again.classifier.state_dict(), original.classifier.state_dict())
    if layout != "google":
        assert again.classifier.config == original.classifier.config
        assert (again.view, again.classes, again.golden) == (original.view, original.classes, original.golden)


def test_class_names_that_are_no_text_are_written_into_a_file_too(tmp_path):
    names = ("caf\udce9", "b", "c")
    write(product(classes=names), tmp_path / "model.safetensors", to="vitreous")
    assert open_model(str(tmp_path / "model.safetensors")).classes == names


SILENT = {
    "norm behind layers": product(tiny(block=BranchNorm())),
    "mean": product(ONE_HEAD, pooling=Mean()),
    "epsilon": product(tiny(norm_eps=0.1)),
    "QuickGELU": product(tiny(feed_forward=QuickGELU())),
    "padded": product(tiny(pad=True, image_size=36)),
}


@pytest.mark.parametrize("model", SILENT.values(), ids=SILENT)
def test_a_single_file_of_ours_tells_also_what_no_tensor_does(model, tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vit_small_patch16_224"}')  # of something else
    write(model, tmp_path / "model.safetensors", to="vitreous")
    assert open_model(str(tmp_path / "model.safetensors")).classifier.config == model.classifier.config
    assert verify(model, tmp_path / "model.safetensors").difference == 0.0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (product(tiny(feed_forward=GELU())), ["feed_forward=GELU(tanh=False)"]),
        (product(tiny(feed_forward=GELU(tanh=True))), []),
        (product(ResNetConfig(units=(1,), image_size=32, norm_eps=1e-6), pooling=Mean()), ["norm=1e-06"]),
        (product(tiny(stem=ResNetStem(units=(1, 1), norm_eps=1e-5))), ["GELU(tanh=False), Epsilons(norm=1e-05"]),
    ],
    ids=["erf", "tanh", "ResNet", "hybrid"],
)
def test_a_file_of_googles_that_forgets_something_says_so(model, said, tmp_path):
    save_product(tmp_path / "source", model)
    lines: list[str] = []
    convert(str(tmp_path / "source"), tmp_path / "folder", to="google", progress=lines.append)
    assert lines == []
    convert(str(tmp_path / "source"), tmp_path / "model.npz", to="google", progress=lines.append)
    assert len(lines) == len(said)
    assert all("model.npz alone does not tell" in line and words in line for line, words in zip(lines, said))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_real_vit_tiny_goes_through_every_layout_bit_for_bit(layout, shared, tmp_path):
    path = next((shared / "weights").glob("vit_tiny*/model.safetensors"))
    original = convert(str(path), tmp_path / "model", to=layout)
    agreement = verify(original, tmp_path / "model", images=2)
    assert agreement == Agreement(difference=0.0, largest=agreement.largest, same_class=2, images=2)
    file = tmp_path / f"model{SUFFIXES.get(layout, '.safetensors')}"
    write(original, file, to=layout)
    for place in (tmp_path / "model", file):
        assert same_tensors(open_model(str(place)).classifier.state_dict(), original.classifier.state_dict())


BEYOND = {
    "ResNet": (product(ResNetConfig(units=(1, 1), image_size=32), pooling=Mean()), {"vitreous", "google"}),
    "hybrid": (product(tiny(stem=ResNetStem(units=(1, 1)))), {"vitreous", "google"}),
    "SwiGLU": (product(tiny(feed_forward=SwiGLU())), {"vitreous", "timm"}),
    "rotary": (product(tiny(position=RoPE2d())), {"vitreous", "timm"}),
    "no position": (product(tiny(position=NoPosition())), {"vitreous", "timm"}),
    "parallel": (product(tiny(block=Parallel())), {"vitreous", "timm"}),
    "RMS norms": (product(tiny(rms_norm=True)), {"vitreous"}),
    "attention pooling": (
        product(tiny(class_token=False, feed_forward=GELU(tanh=True)), pooling=AttentionPool()),
        {"vitreous", "timm", "google"},
    ),
    "another epsilon": (product(tiny(norm_eps=1e-12)), {"vitreous", "hf"}),
    "tanh GELU": (product(tiny(feed_forward=GELU(tanh=True))), {"vitreous", "timm", "hf", "google"}),
    "oblong": (product(tiny(image_size=(32, 48))), {"vitreous", "timm", "hf"}),
    "padded": (product(tiny(pad=True, image_size=36)), {"vitreous"}),
}


@pytest.mark.parametrize(("model", "layouts"), BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_is_written_whole_or_refused_for_what_the_layout_lacks(model, layouts, layout, tmp_path):
    if layout in layouts:
        write(model, tmp_path / "model", to=layout)
        again = load_product(tmp_path / "model")
        assert again.classifier.config == model.classifier.config
        assert same_tensors(again.classifier.state_dict(), model.classifier.state_dict())
    else:
        with pytest.raises(InputError, match=r"has no model with .*\w+=.*; write"):
            write(model, tmp_path / "model", to=layout)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("single", [False, True])
def test_a_headless_model_stays_headless(layout, single, tmp_path):
    original = headless()
    place = tmp_path / ("model" + SUFFIXES.get(layout, ".safetensors") * single)
    write(original, place, to=layout)
    again = open_model(str(place))
    assert again.extra["headless"]
    assert same_tensors(again.classifier.state_dict(), original.classifier.state_dict())
    agreement = verify(original, place)
    assert agreement.largest > 0.1  # of the features, for the head says zero
    if not single:  # a file alone does not tell epsilon and GELU
        assert agreement.difference == 0.0


def test_what_was_left_behind_once_is_no_part_of_the_copy(tmp_path):
    original = product()
    tensors = {f"backbone.{name}": tensor for name, tensor in _timm(original).items() if "head" not in name}
    torch.save({"teacher": tensors | {"head.last_layer.weight_g": torch.ones(3)}}, tmp_path / "dino.pth")
    said = []
    convert(str(tmp_path / "dino.pth"), tmp_path / "model", progress=said.append)
    assert any("left behind: the heads of its training" in line for line in said)
    again = load_product(tmp_path / "model")
    assert "left" not in again.extra
    assert again.extra["headless"]


def _timm(of: Product):
    from vitreous.weights.timm_tensors import to_timm

    return to_timm(of.classifier)


def test_agreement_tells_a_difference(tmp_path):
    original = product(tiny(feed_forward=GELU()))
    write(original, tmp_path / "model.npz", to="google")  # alone, it is taken to have Google's GELU
    found = verify(original, tmp_path / "model.npz")
    assert 0 < found.difference < 0.1 * found.largest
    assert found.images == 4
    assert found.holds


@pytest.mark.parametrize(
    ("difference", "same_class", "holds"), [(0.009, 4, True), (0.011, 4, False), (0.0, 3, False), (math.nan, 4, False)]
)
def test_agreement_holds_within_a_hundredth_and_for_every_image(difference, same_class, holds):
    assert Agreement(difference=difference, largest=1.0, same_class=same_class, images=4).holds is holds


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("onnx", "model", "no layout 'onnx'; choose one of vitreous, timm, hf, torchvision, google"),
        ("google", "model.safetensors", r"the google layout is written as \.npz, or as a folder"),
        ("timm", "model.npz", r"the timm layout is written as \.safetensors, or as a folder"),
    ],
)
def test_a_layout_and_a_name_must_fit(to, name, message, source, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(str(source), tmp_path / name, to=to)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_not_replaced_by_a_folder_nor_a_folder_by_a_file(layout, source, tmp_path):
    file, folder = tmp_path / "file", tmp_path / f"folder{SUFFIXES.get(layout, '.safetensors')}"
    file.write_text("mine")
    folder.mkdir()
    with pytest.raises(InputError, match="it is a file; give another name"):
        convert(str(source), file, to=layout)
    with pytest.raises(InputError, match="it is a folder; give another name"):
        convert(str(source), folder, to=layout)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_with_other_things_in_it_is_never_replaced(layout, source, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"irreplaceable")
    monkeypatch.chdir(photos)
    for name in (photos, Path(".")):
        with pytest.raises(InputError, match=r"cannot write .*photos: it has other things in it \(cat\.jpg\); give"):
            convert(str(source), name, to=layout)
    assert (photos / "cat.jpg").read_bytes() == b"irreplaceable"


def test_the_model_of_a_run_is_never_replaced(source, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run/model: it is the model of a run; give another name"):
        convert(str(source), tmp_path / "run" / "model")


@pytest.mark.parametrize("place", [".", "..", ""])
def test_the_folder_one_is_in_is_never_replaced(place, source, tmp_path, monkeypatch):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    with pytest.raises(InputError, match=r"you are in that folder; give another name|it has other things in it"):
        convert(str(source), Path(place))
    assert Path.cwd() == tmp_path / "here" / "deep"


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.SAFETENSORS", "model.NPZ"])
def test_a_name_of_a_file_that_is_not_written_is_no_folder(name, source, tmp_path):
    with pytest.raises(InputError, match=r"the timm layout is written as \.safetensors, or as a folder"):
        convert(str(source), tmp_path / name, to="timm")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_empty_folder_or_an_older_copy_is_replaced(source, tmp_path):
    (tmp_path / "model").mkdir()
    for layout in LAYOUTS:
        convert(str(source), tmp_path / "model", to=layout)
        assert verify(load_product(source), tmp_path / "model").difference == 0.0
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", "model"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("single", [False, True])
def test_on_a_full_disk_the_old_copy_stays_whole(layout, single, source, tmp_path, monkeypatch):
    place = tmp_path / ("model" + SUFFIXES.get(layout, ".safetensors") * single)
    convert(str(source), place, to=layout)
    before = contents(place)
    other = dataclasses.replace(product(), classifier=randomise(product().classifier, seed=9))
    replace = os.replace

    def fail_on_arrival(source, target):
        if Path(target) == place and str(source).endswith((".new", ".tmp")):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_arrival)
    with pytest.raises(InputError, match="disk is full"):
        write(other, place, to=layout)
    monkeypatch.undo()
    assert contents(place) == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", place.name}


def contents(place: Path) -> dict[str, bytes]:
    files = [place] if place.is_file() else place.iterdir()
    return {file.name: file.read_bytes() for file in files}


def test_class_names_must_be_as_many_as_logits(tmp_path):
    wrong = dataclasses.replace(product(), classes=("a", "b"))
    for layout in LAYOUTS:
        with pytest.raises(InputError, match="2 class names for a model of 3 classes"):
            write(wrong, tmp_path / "model", to=layout)
    assert list(tmp_path.iterdir()) == []
