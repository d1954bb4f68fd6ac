"""On real photos and real weights, where they lie beside the repository."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from vitreous.console import Console
from vitreous.data.layouts import open_data, open_held_out
from vitreous.evaluation.base import Labelled
from vitreous.evaluation.few_shot import FewShot
from vitreous.evaluation.knn import KNN
from vitreous.measurement import frozen
from vitreous.predict import load

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(scope="module")
def weights(shared) -> Path:
    return shared / "weights" / NAME / "model.safetensors"


@pytest.fixture(scope="module")
def synsets(shared) -> list[str]:
    return (shared / "data" / "imagenet_meta" / "imagenet_synsets.txt").read_text().split()


@pytest.fixture(scope="module")
def some_photos(shared, tmp_path_factory) -> Path:
    """A tar of every tenth photo of Imagenette's val split, bytes untouched, in one piece."""
    path = tmp_path_factory.mktemp("photos") / "photos.tar"
    source = shared / "data" / "imagenette224" / "imagenette224_val.tar"
    with tarfile.open(source) as whole, tarfile.open(path, "w") as part:
        for member in [member for member in whole if member.isreg()][::10]:
            content = whole.extractfile(member)
            member.name = member.name.removeprefix("val/")
            part.addfile(member, content)
    return path


def test_untouched_imagenet_weights_say_of_each_photo_what_timm_says(vitreous, weights, synsets, some_photos, tmp_path):
    (tmp_path / "synsets.txt").write_text("\n".join(synsets))
    words = (
        "evaluate",
        weights,
        some_photos,
        "--classes",
        tmp_path / "synsets.txt",
        "--out",
        tmp_path / "ours.csv",
        "--json",
    )
    figures = json.loads(vitreous(*words).out)
    ours = {row["file"]: row for row in csv.DictReader((tmp_path / "ours.csv").read_text().splitlines())}

    model = timm.create_model(NAME, pretrained=False).eval()
    model.load_state_dict(load_file(weights))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    hits = 0
    with tarfile.open(some_photos) as tar, torch.inference_mode():
        for member in tar:
            image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
            said = model(transform(image)[None])[0].double().softmax(-1)
            row = ours[member.name]
            assert row["predicted"] == synsets[said.argmax()]
            assert float(row["confidence"]) == pytest.approx(float(said.max()), abs=5e-6)
            hits += row["predicted"] == row["label"]
    assert figures["top1"]["value"] == hits / 120
    assert figures["num_images"] == 120


def test_those_weights_fine_tune_on_a_few_photos(vitreous, weights, some_photos, tmp_path):
    """Those classes were seen in its training: this checks the machinery, not the science."""
    answer = vitreous("fit", some_photos, "--weights", weights, "--minutes", "0.4", "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["top1"]["value"] > 0.8
    assert "from_scratch" not in answer.err


@pytest.mark.parametrize(
    ("name", "train", "test", "size"),
    [
        ("fashion-mnist:{}/fashion_mnist", 60_000, 10_000, (28, 28)),
        ("cifar10:{}/cifar10", 50_000, 10_000, (32, 32)),
    ],
)
def test_named_sets_are_read_whole(name, train, test, size, shared):
    splits = open_data(name.format(shared / "data"))
    assert len(splits.train) == train
    assert splits.test is not None
    assert len(splits.test) == test
    assert splits.test.image(test - 1).size == size
    assert np.bincount(splits.test.labels).tolist() == [test // 10] * 10


def test_the_pixels_of_fashion_mnist_are_those_of_the_file(shared):
    folder = shared / "data" / "fashion_mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    _, source, _ = open_held_out(f"fashion-mnist:{folder}")
    for i in (0, 77, 9_999):
        np.testing.assert_array_equal(np.asarray(source.image(i))[..., 0], pixels[i])


@pytest.mark.parametrize("name", ["imagenette", "cifar10", "fashion-mnist"])
def test_five_shots_and_neighbours_of_real_features_are_scikit_learns(name, weights, shared, tmp_path):
    """Figures of the whole sets are in docs/measure.md; here a class has 12 images to learn from and 6 to measure."""
    places = {
        "imagenette": str(shared / "data" / "imagenette224" / "imagenette224_train.tar"),
        "cifar10": f"cifar10:{shared / 'data' / 'cifar10'}",
        "fashion-mnist": f"fashion-mnist:{shared / 'data' / 'fashion_mnist'}",
    }
    source = open_data(places[name]).train
    rows = [np.flatnonzero(source.labels == label)[:18] for label in range(10)]
    train, test = (source.select(np.concatenate([part[of] for part in rows])) for of in (slice(0, 12), slice(12, 18)))
    quiet = Console(quiet=True)
    model = frozen(load(weights, device="cpu"), cache=tmp_path, console=quiet)
    data = Labelled(train, test)
    few = FewShot(shots=(5,), exponents=(10,))
    drawn = few.run(model, data, console=quiet).figures["shots"]["5"]["draws"]
    known, asked = model.pooled(train), model.pooled(test)
    for draw, found in enumerate(drawn):
        chosen = known.select(few.draw(known.labels, shots=5, draw=draw)[0])
        scaler = StandardScaler().fit(chosen.values.astype(np.float64))
        x, z = (
            np.pad(scaler.transform(part.values.astype(np.float64)), ((0, 0), (0, 1)), constant_values=100.0)
            for part in (chosen, asked)
        )
        theirs = Ridge(alpha=1024.0, fit_intercept=False, solver="svd").fit(x, 2.0 * np.eye(10)[chosen.labels] - 1)
        assert found["top1"] == (theirs.predict(z).argmax(1) == asked.labels).mean()
    neighbours = KNN(ks=(10, 20)).run(model, data, console=quiet).figures["k"]
    for k in (10, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
        theirs.fit(known.values.astype(np.float64), known.labels)
        said = theirs.predict_proba(asked.values.astype(np.float64)).argmax(1)
        assert neighbours[str(k)]["top1"]["value"] == (said == asked.labels).mean()
