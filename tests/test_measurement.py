import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from known_features import QUIET
from references import randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.evaluation.knn import KNN
from vitreous.evaluation.robustness import Resolution
from vitreous.measurement import classification, corruption_benchmark, find_images, frozen
from vitreous.predict import Model

WORDNET = [f"n{number:08d}" for number in range(1000)]
VIEW = EvalView(image_size=32, crop_ratio=1.0)


def model(classes, *, seed=0):
    classifier = randomise(ClassifierConfig(encoder=tiny(), num_classes=len(classes)).build(), seed=seed)
    return Model(classifier, view=VIEW, classes=classes, device="cpu")


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def logits(loaded, path):
    with torch.inference_mode():
        return loaded.module(loaded.preprocess(path)[None])[0].numpy()


def measured(loaded, data, **options):
    seen = frozen(loaded, cache=None, console=QUIET)
    images = find_images(data, val=None, name="m", model=seen, evaluations={}, console=QUIET)
    return classification(seen, images, **{"real": None, "among_data": False, **options})


def test_imagenet_a_is_scored_among_its_200_classes(tmp_path):
    loaded, chosen = model(WORDNET), WORDNET[3:1000:5][:200]
    for i, name in enumerate(chosen):
        write(tmp_path / name / "0.png", i)
    figures, predicted = measured(loaded, f"imagenet-a:{tmp_path}")
    columns = [WORDNET.index(name) for name in chosen]
    said = [logits(loaded, tmp_path / name / "0.png")[columns].argmax() for name in chosen]
    expected = np.array(said) == np.arange(200)
    assert figures["top1"]["value"] == np.mean(expected)
    outside = np.setdiff1d(np.arange(1000), [WORDNET.index(name) for name in chosen])
    assert (predicted[:, outside] == 0).all()
    np.testing.assert_allclose(predicted.sum(1), 1)


def test_imagenet_v2_counts_classes_by_the_number_of_their_folder(tmp_path):
    loaded = model(WORDNET)
    for number in range(1000):  # in the order of text, "10" comes before "2"
        write(tmp_path / str(number) / "0.png", number % 7)
    figures, _ = measured(loaded, f"imagenet-v2:{tmp_path}")
    said = {seed: int(logits(loaded, tmp_path / str(seed) / "0.png").argmax()) for seed in range(7)}
    assert figures["top1"]["value"] == np.mean([said[number % 7] == number for number in range(1000)])
    assert figures["per_class"][0]["name"].startswith("n")


def test_numbered_classes_have_the_models_names_where_something_learns_too(tmp_path):
    for number in range(1000):
        for i in range(2):
            write(tmp_path / str(number) / f"{i}.png", 2 * number + i)
    seen, both = frozen(model(WORDNET), cache=None, console=QUIET), {"knn": KNN()}
    found = find_images(f"imagenet-v2:{tmp_path}", val=None, name="m", model=seen, evaluations=both, console=QUIET)
    assert set(found.labelled.classes) == set(found.labelled.train.classes) == set(WORDNET)


def test_a_model_of_few_classes_is_no_model_for_imagenet_v2(tmp_path):
    for number in range(1000):
        write(tmp_path / str(number) / "0.png", 0)
    with pytest.raises(InputError, match="the model knows 3; take one of ImageNet"):
        measured(model(["a", "b", "c"]), f"imagenet-v2:{tmp_path}")


def test_real_labels_count_in_imagenets_order_whatever_the_models(tmp_path):
    """A model whose outputs are in another order, with WordNet names that say so."""
    shuffled = [WORDNET[i] for i in np.random.default_rng(0).permutation(1000)]
    loaded = model(shuffled)
    files = {number: tmp_path / "val" / WORDNET[0] / f"ILSVRC2012_val_{number:08d}.png" for number in (1, 2, 3)}
    for number, file in files.items():
        write(file, number)
    best = {number: WORDNET.index(shuffled[logits(loaded, file).argmax()]) for number, file in files.items()}
    real = [[] for _ in range(50_000)]
    real[0], real[1], real[2] = [best[1]], [best[2], 5], [(best[3] + 1) % 1000]
    (tmp_path / "real.json").write_text(json.dumps(real))
    figures, _ = measured(loaded, str(tmp_path / "val"), real=tmp_path / "real.json")
    assert figures["real"]["top1"]["value"] == pytest.approx(2 / 3)


def test_among_data_renormalises_over_its_classes(tmp_path):
    loaded = model(["a", "b", "c", "d"])
    for name in ("b", "d"):
        write(tmp_path / name / "0.png", ord(name))
    _, predicted = measured(loaded, str(tmp_path), among_data=True)
    for i, name in enumerate("bd"):
        two = logits(loaded, tmp_path / name / "0.png")[[1, 3]].astype(np.float64)
        np.testing.assert_allclose(predicted[i, [1, 3]], np.exp(two) / np.exp(two).sum(), atol=1e-6)


def test_the_errors_of_each_corruption_are_measured(tmp_path):
    loaded = model(["a", "b", "c"])
    for kind in ("fog", "snow"):
        for level in range(1, 6):
            for name in "abc":
                write(tmp_path / kind / str(level) / name / "0.png", level)
    figures = corruption_benchmark(frozen(loaded, cache=None, console=QUIET), tmp_path, console=QUIET)
    fog = figures["corruptions"]["fog"]
    assert fog["by_severity"] == figures["corruptions"]["snow"]["by_severity"]
    for level in range(1, 6):  # the three images are equal, so one class is right at most
        assert fog["by_severity"][level] == pytest.approx(2 / 3)
    assert figures["mce"] is None


def test_images_to_learn_from_are_opened_only_where_something_learns(photos):
    seen = frozen(model(["sea", "sky", "wall"]), cache=None, console=QUIET)

    def found(evaluations):
        return find_images(str(photos), val=None, name="m", model=seen, evaluations=evaluations, console=QUIET).labelled

    assert found({"resolution": Resolution()}).train is None
    assert len(found({"resolution": Resolution()}).test) == 72
    both = found({"knn": KNN()})
    assert both.train is not None
    assert (len(both.train), len(both.test), both.split) == (57, 15, "test")


def test_other_data_to_measure_on_need_something_that_learns(photos):
    seen = frozen(model(["sea", "sky", "wall"]), cache=None, console=QUIET)
    with pytest.raises(InputError, match="to measure on other images, give them as DATA"):
        find_images(str(photos), val=str(photos), name="m", model=seen, evaluations={}, console=QUIET)
