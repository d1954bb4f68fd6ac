import dataclasses
import json
import os

import pytest
import timm
import torch
import transformers
from timm.data.config import resolve_model_data_config

from references import IN_TIMM, difference, random_images, randomise, same_tensors, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.head import LinearHead
from vitreous.weights.product import Product, golden_input, load_product, save_product

CLASSES = ("猫", 'dog "big"', "class c")
VIEW = EvalView(image_size=32, crop_ratio=0.8, interpolation="bilinear", mean=(0.1, 0.2, 0.3))


def product(config: ClassifierConfig, *, seed: int = 0, **extra) -> Product:
    view = dataclasses.replace(VIEW, image_size=config.encoder.image_size)
    return Product(randomise(config.build(), seed=seed), view, CLASSES, extra)


def tiny_product(*, seed: int = 0, **extra) -> Product:
    return product(ClassifierConfig(encoder=tiny(), num_classes=3), seed=seed, **extra)


ROUNDED = ("SwiGLU", "parallel", "hybrid", "ResNet")
"""Where we compute in another order: two products instead of one, weights standardised by other means."""


@pytest.mark.parametrize("name", IN_TIMM)
def test_timm_and_transformers_load_the_folder_without_any_difference(name, tmp_path):
    config, tolerance = IN_TIMM[name], 2e-6 if name.startswith(ROUNDED) else 0
    saved = product(config)
    images = random_images(2, config.encoder.channels, *config.encoder.image_shape)
    save_product(tmp_path / "model", saved)
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    in_transformers = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = saved.classifier(images)
        assert difference(in_timm(images), logits) <= tolerance
        assert difference(in_transformers(images).logits, logits) <= tolerance
    assert in_transformers.config.id2label == dict(enumerate(CLASSES))
    prepared = resolve_model_data_config(in_timm)
    assert prepared["input_size"] == (config.encoder.channels, *config.encoder.image_shape)
    assert prepared["crop_pct"] == 0.8
    assert prepared["interpolation"] == "bilinear"
    assert tuple(prepared["mean"]) == VIEW.mean


@pytest.mark.parametrize("name", ["class token", "distilled", "hybrid of R26", "hybrid of the root alone", "ResNet"])
def test_timm_takes_the_folder_for_other_classes_and_channels(name, tmp_path):
    save_product(tmp_path / "model", product(IN_TIMM[name]))
    place = f"local-dir:{tmp_path / 'model'}"
    theirs = timm.create_model(place, pretrained=True, num_classes=7, in_chans=1).eval()
    assert theirs(random_images(1, 1, *IN_TIMM[name].encoder.image_shape)).shape == (1, 7)


OURS_ALONE = {
    "RMS norms": ClassifierConfig(encoder=tiny(rms_norm=True), num_classes=3),
    "representation": ClassifierConfig(encoder=tiny(), head=LinearHead(representation=16), num_classes=3),
}


@pytest.mark.parametrize("config", [*IN_TIMM.values(), *OURS_ALONE.values()], ids=[*IN_TIMM, *OURS_ALONE])
def test_a_product_comes_back_as_it_was(config, tmp_path):
    saved = product(config, top1=0.5, recipe={"epochs": 3})
    save_product(tmp_path / "model", saved)
    loaded = load_product(tmp_path / "model")
    assert (loaded.view, loaded.classes, loaded.extra) == (saved.view, saved.classes, saved.extra)
    assert loaded.classifier.config == config
    assert same_tensors(loaded.classifier.state_dict(), saved.classifier.state_dict())


@pytest.mark.parametrize("config", OURS_ALONE.values(), ids=OURS_ALONE)
def test_a_model_timm_lacks_names_no_architecture(config, tmp_path):
    save_product(tmp_path / "model", product(config))
    assert "architecture" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_the_golden_logits_are_those_of_the_golden_input(tmp_path):
    save_product(tmp_path / "model", tiny_product())
    golden = json.loads((tmp_path / "model" / "config.json").read_text())["vitreous"]["golden"]
    loaded = load_product(tmp_path / "model").classifier
    images = golden_input(loaded.config)
    assert list(images.shape) == golden["shape"]
    assert loaded(images)[0].tolist() == golden["logits"]


def test_saving_leaves_the_model_in_training(tmp_path):
    saved = tiny_product()
    saved.classifier.train()
    save_product(tmp_path / "model", saved)
    assert saved.classifier.training
    assert all(module.training for module in saved.classifier.modules())


def test_a_product_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save_product(folder, tiny_product(seed=1))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    replace = os.replace

    def fail_when_the_folder_arrives(source, target):
        if str(source).endswith(".new"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_when_the_folder_arrives)
    with pytest.raises(InputError, match="disk is full"):
        save_product(folder, tiny_product(seed=2))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_product_replaces_an_older_one_and_leaves_nothing_beside_it(tmp_path):
    for seed in (1, 2):
        save_product(tmp_path / "model", tiny_product(seed=seed))
    name = "encoder.norm.weight"
    loaded = load_product(tmp_path / "model").classifier.state_dict()[name]
    assert torch.equal(loaded, tiny_product(seed=2).classifier.state_dict()[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_class_names_must_be_as_many_as_logits(tmp_path):
    saved = tiny_product()
    saved.classes = ("a", "b")
    with pytest.raises(InputError, match="2 class names for a model of 3 classes"):
        save_product(tmp_path / "model", saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["vitreous"].update(format=2), "newer vitreous"),
        (lambda config: config["vitreous"].pop("classifier"), "lacks or misstates 'classifier'"),
        (
            lambda config: config["vitreous"]["classifier"].update(num_classes=4),
            r"head.linear.weight is 3 x 32, not 4 x 32",
        ),
        (lambda config: config["vitreous"]["classifier"].update(colour=4), "no field 'colour'"),
        (lambda config: config["vitreous"]["classifier"]["encoder"].update(depth=3), "12 missing"),
    ],
)
def test_a_config_that_is_wrong_is_one_line_about_what_is_wrong(change, message, tmp_path):
    save_product(tmp_path / "model", tiny_product())
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as error:
        load_product(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_config_cut_short_is_said_to_be_no_json(tmp_path):
    save_product(tmp_path / "model", tiny_product())
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match="is no JSON"):
        load_product(tmp_path / "model")
