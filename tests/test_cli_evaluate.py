import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from vitreous.cli import measuring

FAST = ("--few_shot.num_seeds", "2", "--linear.epochs", "2", "--cost.seconds", "0.01", "--knn.ks", "5")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def test_one_command_measures_in_every_way_and_shares_the_features(trained, photos, vitreous, cache):
    words = ("evaluate", trained, photos, "--with", "classification,few-shot,knn,logistic,linear,cost", *FAST)
    figures = json.loads(vitreous(*words, "--json").out)
    found = figures["evaluations"]
    assert list(found) == ["few_shot", "knn", "logistic", "linear", "cost"]
    assert figures["top1"]["value"] == json.loads((trained / "evaluation.json").read_text())["top1"]["value"]
    assert found["few_shot"]["shots"]["5"]["top1"] > 0.9
    assert found["knn"]["k"]["5"]["top1"]["value"] > 0.9
    assert len(list(cache.glob("*/*.npy"))) == 2  # train and test, once each
    text = vitreous(*words)
    assert "features of 57 of 57 images were computed before" in text.err
    for said in ("5-shot", "5-NN", "penalty", "learning rate", "GMACs an image", "95 % interval"):
        assert said in text.out


def test_a_run_is_probed_on_the_images_it_held_out(trained, photos, vitreous):
    answer = vitreous("evaluate", trained, photos, "--with", "knn", *FAST[-2:])
    assert f"the splits are those of {trained}" in answer.err
    assert "learning from 57 images, measuring on 15 of test" in answer.err


def test_an_encoder_without_a_head_is_probed_all_the_same(trained, photos, vitreous, tmp_path):
    tensors = load_file(trained / "model" / "model.safetensors")
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
    save_file(encoder, tmp_path / "encoder.safetensors")
    answer = vitreous("evaluate", tmp_path / "encoder.safetensors", photos, "--with", "few-shot,resolution", "--json")
    found = json.loads(answer.out)["evaluations"]
    assert answer.code == 0
    assert found["resolution"]["readout"] == "least squares on 57 training images"
    assert found["few_shot"]["shots"]["1"]["top1"] > 0.5


def test_curves_of_robustness_need_no_images_to_learn_from(trained, photos, vitreous):
    answer = vitreous("evaluate", trained, photos, "--with", "resolution,patch-drop,patch-shuffle", "--no-cache")
    assert answer.code == 0
    assert "not shuffled" in answer.out
    assert "0% of patches dropped" in answer.out
    assert "learning from" not in answer.err


def test_features_stay_where_they_are_told_or_nowhere(trained, photos, vitreous, cache, tmp_path):
    vitreous("evaluate", trained, photos, "--with", "knn", *FAST[-2:], "--no-cache")
    assert not cache.exists()
    vitreous("evaluate", trained, photos, "--with", "knn", *FAST[-2:], "--cache", tmp_path / "mine")
    assert len(list((tmp_path / "mine").glob("*/*.npy"))) == 2
    assert not cache.exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--with", "fewshot"), "did you mean few-shot?"),
        (("--with", "knn", "--knn.k", "5"), "no field 'knn.k'"),
        (("--with", "knn", "--linear.epochs", "5"), "add it to --with"),
        (("--with", "knn", "--knn.ks", "0"), "ks is 0; it must be 1 or more"),
        (("--with", "knn", "--real", "real.json"), "--real is about classification"),
        (("--with", "knn", "--among-data"), "--among-data is about classification"),
        (("--with", "knn", "--mirrored"), "--mirrored is about classification"),
        (("--with", "few-shot", "--few_shot.shots", "100"), "no 100 shots: sea has 19"),
        (("--val", "x"), "give them as DATA"),
        (("--real", "none.json"), "cannot read ReaL labels from none.json"),
        (("nonsense",), "a field is changed by --name value, got 'nonsense'"),
    ],
)
def test_a_wrong_word_ends_in_one_line(words, hint, trained, photos, vitreous):
    answer = vitreous("evaluate", trained, photos, *words)
    assert answer.code == 2
    assert hint in answer.err.splitlines()[-1]
    assert answer.out == ""


@pytest.mark.parametrize("kind", ["imagenet-c", "vtab"])
@pytest.mark.parametrize(
    "words",
    [("--val", "x"), ("--out", "x.csv"), ("--real", "x"), ("--among-data",), ("--mirrored",), ("--figures", "x")],
)
def test_a_benchmark_takes_no_option_that_it_would_not_heed(kind, words, trained, vitreous):
    answer = vitreous("evaluate", trained, f"{kind}:.", *words)
    assert answer.code == 2
    assert f"{kind} is a benchmark of its own, without {words[0]}" in answer.err


def test_what_was_found_before_an_error_is_told(trained, photos, vitreous):
    answer = vitreous(
        "evaluate", trained, photos, "--with", "cost,knn", "--cost.seconds", "0.01", "--json", "--knn.ks", "999"
    )
    assert answer.code == 2
    assert list(json.loads(answer.out)["evaluations"]) == ["cost"]
    assert "57 training images for 999 neighbours" in answer.err.splitlines()[-1]


def test_files_that_cannot_be_read_are_left_out_and_named(trained, photos, vitreous, tmp_path):
    shutil.copytree(photos, tmp_path / "mixed")
    for name in ("sea", "sky"):
        (tmp_path / "mixed" / name / "broken.png").write_bytes(b"x")
    shutil.copy(photos / "sea" / "sea0.png", tmp_path / "mixed" / "sky" / "copy.png")
    answer = vitreous("evaluate", trained, tmp_path / "mixed", "--with", "knn", "--knn.ks", "5", "--json")
    figures = json.loads(answer.out)
    assert [file["file"] for file in figures["unreadable"]] == ["sea/broken.png", "sky/broken.png"]
    assert figures["data"]["train"] + figures["data"]["test"] == 71  # and the picture of two classes is no help
    assert "copies of other images" in answer.err


@pytest.fixture
def tasks(photos, tmp_path):
    """Two tasks as they are handed out with id lists, and one empty folder beside them."""
    files = [f"images/{name}/{name}{i}.png {label}" for i in range(24) for label, name in enumerate(("sea", "sky"))]
    for task in ("eurosat", "patch_camelyon"):
        folder = tmp_path / "vtab" / task
        folder.mkdir(parents=True)
        (folder / "images").symlink_to(photos, target_is_directory=True)
        for name, lines in (("train800", files[:20]), ("val200", files[20:30]), ("test", files[30:])):
            (folder / f"{name}.txt").write_text("\n".join(lines))
    (tmp_path / "vtab" / "others").mkdir()
    return tmp_path / "vtab"


def test_vtab_stands_beside_the_paper(trained, tasks, vitreous):
    words = ("evaluate", trained, f"vtab:{tasks}", "--with", "knn,logistic", "--knn.ks", "5")
    figures = json.loads(vitreous(*words, "--json").out)
    assert list(figures["tasks"]) == ["camelyon", "eurosat"]  # as in Table 9
    assert figures["tasks"]["eurosat"]["official"] is False
    assert figures["tasks"]["eurosat"]["scores"]["logistic"] > 90
    assert figures["means"]["logistic"] == {"natural": None, "specialized": None, "structured": None, "all": None}
    answer = vitreous(*words)
    assert answer.code == 0
    line = next(line for line in answer.out.splitlines() if line.startswith("EuroSAT"))
    assert line.endswith("96.7      96.5       95.6  own choice")
    assert "with 20 and 10 images: not VTAB-1k's ids" in answer.err


@pytest.mark.parametrize(
    ("data", "words", "hint"),
    [
        ("vtab:none", ("--with", "knn"), "vtab:none: no such folder"),
        ("vtab:.", ("--with", "knn"), "holds no folder of a task; call them caltech101, cifar100"),
        ("vtab:.", (), "say how, such as --with linear"),
        ("vtab:TASKS", ("--with", "few-shot", "--few_shot.shots", "1"), "few-shot is no way to do so"),
        ("vtab:BROKEN", ("--with", "knn"), "DTD of VTAB: "),
    ],
)
def test_what_vtab_lacks_is_said_in_one_line(data, words, hint, trained, tasks, vitreous, tmp_path):
    (tmp_path / "broken" / "dtd").mkdir(parents=True)
    data = data.replace("TASKS", str(tasks)).replace("BROKEN", str(tmp_path / "broken"))
    answer = vitreous("evaluate", trained, data, *words)
    assert answer.code == 2
    assert hint in answer.err.splitlines()[-1]


def test_figures_are_drawn_where_they_are_asked_for(trained, photos, vitreous, tmp_path):
    words = ("--with", "classification,knn", "--knn.ks", "5,10", "--figures", tmp_path / "drawn")
    answer = vitreous("evaluate", trained, photos, *words)
    assert answer.code == 0
    names = {file.name for file in (tmp_path / "drawn").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("reliability", "confusion", "knn") for kind in ("pdf", "png")}
    (tmp_path / "file").touch()
    refused = vitreous("evaluate", trained, photos, "--figures", tmp_path / "file")
    assert refused.code == 2
    assert "cannot write" in refused.err


def test_imagenet_c_is_a_benchmark_of_its_own(trained, photos, vitreous, tmp_path):
    for level in range(1, 6):
        (tmp_path / "c" / "fog").mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / "fog" / str(level)).symlink_to(photos, target_is_directory=True)
    answer = vitreous("evaluate", trained, f"imagenet-c:{tmp_path / 'c'}")
    assert answer.code == 0
    assert "not all 15 corruptions at 5 severities are there" in answer.out
    assert json.loads(vitreous("evaluate", trained, f"imagenet-c:{tmp_path / 'c'}", "--json").out)["mce"] is None
    refused = vitreous("evaluate", trained, f"imagenet-c:{tmp_path / 'c'}", "--with", "knn")
    assert refused.code == 2
    assert "leave out --with" in refused.err


def test_the_benchmark_shows_its_mean_where_it_is_whole(capsys):
    one = {"error": 0.5, "relative": 0.7, "by_severity": {}}
    measuring.show_corruptions({"corruptions": {"fog": one}, "mean_error": 0.5, "mce": 0.7})
    assert capsys.readouterr().out.splitlines()[-1].split() == ["mean", "50.00%", "70.00%"]
