import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from references import random_images, randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.weights import Product, hub, open_model, save_product
from vitreous.weights.timm_config import describe
from vitreous.weights.timm_tensors import to_timm

CONFIG = ClassifierConfig(encoder=tiny(num_heads=1), num_classes=3)
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def classifier():
    return randomise(CONFIG.build())


@pytest.fixture
def run(classifier, tmp_path):
    folder = tmp_path / "flowers"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    save_product(folder / "model", Product(classifier, EvalView(image_size=32), CLASSES))
    return folder


def same(product, classifier):
    images = random_images(1, 3, 32, 32)
    return torch.equal(product.classifier(images), classifier(images))


@pytest.mark.parametrize("inside", ["", "model", "model/model.safetensors"])
def test_a_run_its_model_folder_and_its_weights_file_are_the_same_model(inside, run, classifier):
    product = open_model(str(run / inside))
    assert same(product, classifier)
    assert product.classes == CLASSES
    assert product.extra == {}


@pytest.mark.parametrize("layout", ["timm", "vitreous"])
def test_a_bare_file_is_opened_and_says_what_was_assumed(layout, classifier, tmp_path):
    tensors = to_timm(classifier) if layout == "timm" else classifier.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    product = open_model(str(tmp_path / "w.safetensors"))
    assert same(product, classifier)
    assert product.view == EvalView(image_size=32, crop_ratio=0.9, interpolation="bicubic")
    assert product.classes is None
    assert "assumed 1 heads" in product.extra["assumed"]
    assert "crop ratio 0.9" in product.extra["assumed"]


def test_a_larger_image_is_assumed_to_be_kept_whole(tmp_path):
    big = ClassifierConfig(encoder=tiny(num_heads=1, image_size=240), num_classes=3).build()
    torch.save(to_timm(big), tmp_path / "w.pth")
    assert open_model(str(tmp_path / "w.pth")).view.crop_ratio == 1.0


def test_timms_config_beside_a_file_says_how_images_are_prepared(classifier, tmp_path):
    pretrained = {"crop_pct": 0.7, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}
    document = {
        **describe(CONFIG),
        "pretrained_cfg": pretrained,
        "label_names": {"0": "a", "1": "b", "2": "c"},
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    torch.save(to_timm(classifier), tmp_path / "pytorch_model.bin")
    product = open_model(str(tmp_path / "pytorch_model.bin"))
    assert same(product, classifier)
    assert product.view == EvalView(
        image_size=32, crop_ratio=0.7, mean=(0.1, 0.2, 0.3), std=(1, 1, 1), interpolation="bilinear"
    )
    assert product.classes == CLASSES
    assert "assumed" not in product.extra


def test_our_config_beside_a_file_of_another_name_still_wins(run, classifier):
    (run / "model" / "model.safetensors").rename(run / "model" / "best.safetensors")
    product = open_model(str(run / "model" / "best.safetensors"))
    assert same(product, classifier)
    assert product.classes == CLASSES


def test_a_config_of_another_model_beside_a_file_is_named_as_the_reason(run, classifier):
    tensors = {name: tensor for name, tensor in to_timm(classifier).items() if not name.startswith("blocks.0")}
    torch.save(tensors, run / "model" / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt, read with the config\.json beside it: these weights do not fit"):
        open_model(str(run / "model" / "other.pt"))


def test_a_config_that_is_not_about_the_file_is_no_help(classifier, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    torch.save(to_timm(classifier), tmp_path / "w.pt")
    assert open_model(str(tmp_path / "w.pt")).extra["assumed"].startswith("config.json does not say: assumed")


def test_a_shard_that_is_missing_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"lacks model-2\.safetensors, which model\.safetensors\.index\.json names"):
        open_model(str(tmp_path))


def test_class_names_that_are_not_the_heads_are_left_behind_and_said(classifier, tmp_path):
    said = {"architecture": "vit_tiny_patch16_224", "label_names": ["a", "b"], "model_args": {"num_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    save_file(to_timm(classifier), tmp_path / "model.safetensors")
    product = open_model(str(tmp_path))
    assert product.classes is None
    assert "2 class names, for the head has" in product.extra["left"]


def test_an_encoder_alone_is_marked_as_headless(classifier, tmp_path):
    torch.save({name: t for name, t in to_timm(classifier).items() if not name.startswith("head")}, tmp_path / "w.pt")
    assert open_model(str(tmp_path / "w.pt")).extra["headless"]


def test_the_real_vit_tiny_opens_with_the_preprocessing_it_was_published_with(shared):
    path = next((shared / "weights").glob("vit_tiny*/model.safetensors"))
    product = open_model(str(path))
    assert product.view == EvalView(image_size=224, crop_ratio=0.9, interpolation="bicubic")
    assert torch.equal(product.classifier.state_dict()["encoder.norm.weight"], load_file(path)["norm.weight"])


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("timm:vit_tiny_patch16_224.augreg_in21k", "timm/vit_tiny_patch16_224.augreg_in21k"),
        ("hub:me/flowers", "me/flowers"),
        ("hf-hub:me/flowers", "me/flowers"),
        ("hf_hub:me/flowers", "me/flowers"),
    ],
)
def test_names_of_the_hub_are_fetched(name, repository, run, classifier, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda given, *, progress: asked.append(given) or run / "model")
    assert same(open_model(name), classifier)
    assert asked == [repository]


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path):
    (tmp_path / "run.json").write_text('{"command": "vitreous fit photos"}')
    with pytest.raises(InputError, match=f"{tmp_path} is not finished.*go on with: vitreous fit photos"):
        open_model(str(tmp_path))


def test_a_model_folder_without_weights_says_which_file_is_missing(run):
    (run / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors|model.safetensors: No such file"):
        open_model(str(run))


def test_a_folder_of_weights_lists_them(tmp_path):
    (tmp_path / "best.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"give one of its files: best\.pth"):
        open_model(str(tmp_path))


def test_a_misspelt_run_is_recognised(run):
    with pytest.raises(InputError, match=f"did you mean {run}"):
        open_model(str(run)[:-1])


@pytest.mark.parametrize("name", ["B/16", "vit_base_patch16_224", "128x6/4"])
def test_a_shape_is_told_apart_from_a_trained_model(name):
    with pytest.raises(InputError, match="shape without weights"):
        open_model(name)


def test_a_name_like_nothing_says_what_is_understood():
    with pytest.raises(
        InputError, match=r"there is no model 'qqqqqqqqq'; give a run folder, .*hf:OWNER/NAME or google:"
    ):
        open_model("qqqqqqqqq")
