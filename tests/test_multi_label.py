"""Images that show several classes, and images without labels, as the command line takes them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as theirs

from pictures import class_folders, encoded, noise, write
from vitreous import fit, load
from vitreous.console import Console
from vitreous.run_folder import RunFolder

COLOURS = {"sea": 1, "sky": 2, "wall": 0}


@pytest.fixture(scope="module")
def bands(tmp_path_factory) -> Path:
    """A list of 160 pictures of three bands, each grey or of the colour of a class that the list then names."""
    root = tmp_path_factory.mktemp("bands")
    random = np.random.default_rng(0)
    rows = [("image", "labels")]
    for i in range(160):
        pixels, shown = random.integers(0, 100, (24, 16, 3)), random.random(3) < 0.4
        for band, channel in enumerate(COLOURS.values()):
            if shown[band]:
                pixels[8 * band : 8 * band + 8, :, channel] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        rows.append((f"{i}.png", "|".join(name for name, there in zip(COLOURS, shown) if there)))
    with open(root / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return root / "list.csv"


@pytest.fixture(scope="module")
def trained(bands, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    fit(str(bands), model="32x2/8", image_size=24, minutes=0.1, out=str(folder), console=Console(quiet=True))
    return folder


def table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a CSV of predictions says is shown, and how probable it found each class."""
    with open(path, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    shown = [[name in row["label"].split(" | ") for name in COLOURS] for row in rows]
    return np.array(shown), np.array([[float(row[name]) for name in COLOURS] for row in rows])


def test_a_run_learns_all_that_its_images_show(trained):
    folder = RunFolder(trained)
    record, figures = folder.read(), folder.figures()
    objective = record["config"]["objective"]
    assert objective["loss"] == "sigmoid"
    assert -0.8 < objective["head"]["bias"] < 0  # the classes are in 40 % of the images
    assert figures["map"]["value"] > 0.9
    shown, said = table(folder.predictions)
    assert figures["map"]["value"] == pytest.approx(theirs.average_precision_score(shown, said), abs=1e-3)
    assert figures["micro_f1"] == pytest.approx(theirs.f1_score(shown, said > 0.5, average="micro"))
    measured = [line for line in folder.measurements() if "map" in line]
    assert measured
    assert all("top1" not in line for line in measured)
    page = folder.report.read_text()
    assert "mean average precision" in page
    assert 'id="confusion"' not in page


def test_evaluate_measures_it_again(vitreous, bands, trained):
    answer = vitreous("evaluate", trained, bands, "--json", "--out", "said.csv", "--no-cache")
    assert answer.code == 0, answer.err
    figures = json.loads(answer.out)
    assert figures["map"] == pytest.approx(RunFolder(trained).figures()["map"], abs=1e-6)
    shown, said = table(Path("said.csv"))
    assert figures["map"]["value"] == pytest.approx(theirs.average_precision_score(shown, said), abs=1e-3)
    assert "mAP" in vitreous("evaluate", trained, bands, "--no-cache").out


def test_predict_names_all_that_it_sees(vitreous, bands, trained):
    with open(bands, encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:21]
    pictures = [bands.parent / row[0] for row in rows]
    answer = vitreous("predict", trained, *pictures, "--json", "--out", "said.csv")
    said = [json.loads(line) for line in answer.out.splitlines()]
    assert all(one["multi_label"] for one in said)
    right = [set(one["labels"]) == set(filter(None, row[1].split("|"))) for one, row in zip(said, rows)]
    assert sum(right) > 10
    for one in said:
        assert set(one["labels"]) == {name for name, score in one["top"] if score > 0.5}
    with open("said.csv", encoding="utf-8") as file:
        assert [row["labels"] for row in csv.DictReader(file)] == [" | ".join(one["labels"]) for one in said]
    lines = vitreous("predict", trained, *pictures).out.splitlines()
    assert all(("none (nearest" in line) == (not one["labels"]) for line, one in zip(lines, said))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train", "digits", "--data.path", "LIST"), "chooses one; give --objective.loss sigmoid"),
        (("train", "digits", "--data.path", "LIST", "--dry-run"), "chooses one; give --objective.loss sigmoid"),
        (("evaluate", "RUN", "LIST", "--with", "few-shot,knn"), "few-shot takes images of one class each"),
        (("evaluate", "RUN", "LIST", "--among-data"), "--among-data is for a model that chooses one class"),
        (("evaluate", "SINGLE", "LIST"), "may show several classes, but the model chooses one"),
        (("fit", "FLAT"), "training a classifier needs labels, which 12 images lack; there are no class folders"),
        (("train", "digits", "--data.path", "FLAT", "--dry-run"), "needs labels, which 12 images lack"),
        (("fit", "ONE"), "the images have one class only (cat); a classifier needs two or more"),
        (("evaluate", "RUN", "FLAT"), "has no labels to measure by"),
        (("evaluate", "RUN", "FLAT", "--with", "knn"), "needs labels, which 12 images lack"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(vitreous, bands, trained, flat, tmp_path, command, message):
    names = {"LIST": bands, "RUN": trained, "FLAT": flat}
    if "SINGLE" in command:
        names["SINGLE"] = single(tmp_path)
    if "ONE" in command:
        names["ONE"] = class_folders(tmp_path / "one", ("cat",))
    answer = vitreous(*(names.get(word, word) for word in command))
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.strip().splitlines()[-1].startswith("vitreous: ")


def single(folder: Path) -> Path:
    """A model, not trained, that chooses one of the classes of `bands`."""
    from vitreous.classifier import ClassifierConfig
    from vitreous.data.views import EvalView
    from vitreous.variants import vit
    from vitreous.weights.product import Product, save_product

    classifier = ClassifierConfig(encoder=vit("32x1/8", image_size=24), num_classes=3).build().eval()
    save_product(folder / "single", Product(classifier, EvalView(image_size=24), tuple(COLOURS)))
    return folder / "single"


def test_a_sweep_and_a_comparison_go_by_mean_average_precision(vitreous, bands, trained):
    options = ("--steps", 20, "--objective.loss", "sigmoid", "--model.image_size", 24, "--model.patch_size", 8)
    views = ("--train_view.image_size", 24, "--eval_view.image_size", 24)
    over = ("--over", "learning_rate.peak=0.001,0.01")
    answer = vitreous("sweep", "digits", "--data.path", bands, *options, *views, *over, "--out", "swept", "--json")
    assert answer.code == 0, answer.err
    swept = json.loads(answer.out)
    assert swept["figure"] == "mAP"
    for setting in swept["settings"]:
        assert setting["score"] == RunFolder(Path(setting["outcomes"][0]["path"])).figures()["map"]
    compared = vitreous("runs", "compare", "swept", trained).out
    assert "mAP" in compared
    assert "top-1" not in compared
    assert "mAP" in vitreous("runs", "swept").out


@pytest.fixture
def flat(tmp_path) -> Path:
    """A folder of 12 images without labels, two of them equal."""
    pictures = {f"{i}.png": encoded(noise(i, width=40, height=40)) for i in range(11)}
    return write(pictures | {"copy.png": pictures["3.png"]}, tmp_path / "flat")


def test_unlabelled_images_are_checked_packed_timed_and_predicted(vitreous, flat, trained):
    found = json.loads(vitreous("data", "check", flat, "--json", "--page", "check.html").out)
    assert found["num_images"] == 12
    assert found["findings"]["equal images within a split"]["count"] == 1
    assert vitreous("data", "check", flat).code == 0
    assert vitreous("data", "pack", flat, "shards").code == 0
    assert json.loads(vitreous("data", "check", "shards", "--json").out)["num_images"] == 12
    speed = vitreous("data", "bench", "shards", "smoke", "--seconds", 0.1, "--workers", 0, "--json")
    assert json.loads(speed.out)["read"]["0"] > 0
    assert len(vitreous("predict", trained, flat, "--json").out.splitlines()) == 12


def test_images_of_several_classes_are_checked_packed_and_timed(vitreous, bands):
    found = json.loads(vitreous("data", "check", bands, "--json", "--page", "check.html").out)
    facts = found["splits"]["train"]
    assert facts["num_images"] == 160
    assert set(facts["classes"]) == set(COLOURS)
    assert vitreous("data", "pack", bands, "shards").code == 0
    assert (
        json.loads(vitreous("data", "check", "shards", "--json").out)["splits"]["train"]["classes"] == facts["classes"]
    )
    assert vitreous("data", "bench", "shards", "smoke", "--seconds", 0.1, "--workers", 0, "--json").code == 0


@pytest.mark.parametrize("layout", ["vitreous", "google"])
def test_the_kind_of_a_model_travels_with_it(vitreous, trained, layout):
    answer = vitreous("convert", trained, "copy", "--to", layout)
    assert answer.code == 0, answer.err
    assert json.loads(Path("copy/config.json").read_text())["problem_type"] == "multi_label_classification"
    assert load("copy").multi_label
