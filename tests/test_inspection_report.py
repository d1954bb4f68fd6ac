"""The report page: what it says, what it says when something is missing, and that it is inert."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from example_run import VIEW, example_classifier, example_files, example_run, write_run
from vitreous.errors import InputError
from vitreous.inspection.report import write_report
from vitreous.run_folder import RunFolder

VOID = {"meta", "img", "input", "br", "link"}
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&lt;'


class Page(HTMLParser):
    """Elements, attributes and text of a page; an element closed in the wrong order is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += f" {data.strip()}" if data.strip() else ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def complete(folder: Path) -> Path:
    return write_report(folder, data=example_run(folder), classifier=example_classifier(), view=VIEW)


def test_the_page_shows_every_section_in_order(tmp_path):
    page = read(complete(tmp_path / "first"))
    titles = "data curves confusion classes calibration mistakes labels attention run next"
    assert " ".join(section["id"] for section in page.all("section")) == f"figures {titles}"
    assert " ".join(link["href"].removeprefix("#") for link in page.all("a")) == titles
    assert "No " not in re.sub(r"No class was|No label stands", "", page.text)


def test_the_figures_are_those_of_evaluation_json(tmp_path):
    page = read(complete(tmp_path))
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    top1 = figures["top1"]
    assert f"{100 * top1['value']:.1f} %" in page.text
    assert f"95 % interval {100 * top1['low']:.1f}\xa0% to {100 * top1['high']:.1f}\xa0%" in page.text
    assert f"Macro F1 {figures['macro_f1']:.3f}" in page.text
    assert f"Calibration error {figures['ece']:.3f}" in page.text
    parameters = sum(p.numel() for p in example_classifier().parameters())
    assert f"Parameters {parameters:,}" in page.text
    assert "Training time 3:20 min" in page.text


def test_data_config_plan_command_and_seed_are_told(tmp_path):
    text = read(complete(tmp_path)).text
    for said in (
        "Equal images 1 group in one split",
        "cat/broken.jpg (train): ends too soon",
        "30 of 90 images are held out as test (seed 0)",
        "model ViT 32x2/4, from scratch",
        "vitreous fit photos/",
        "mlp_dim 64",
        "seed 7",
    ):
        assert said in text


def test_mistakes_are_the_held_out_ones_surest_first(tmp_path):
    text = complete(tmp_path).read_text("utf-8")
    section = text[text.index('id="mistakes"') : text.index('id="labels"')]
    shown = re.findall(r'<b>(\w+)</b> ([\d.]+)\xa0%.*?label <b>(\w+)</b>.*?title="([^"]*)"', section, re.DOTALL)
    rows = [line.split(",") for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]]
    wrong = [row for row in rows if row[0] == "test" and row[3] != row[4]]
    wrong.sort(key=lambda row: -float(row[5]))
    assert len(wrong) > 2
    assert shown == [(row[4], f"{100 * float(row[5]):.1f}", row[3], row[2]) for row in wrong]


def test_a_thumbnail_is_the_image_of_its_row(tmp_path):
    data = example_run(tmp_path)
    section = write_report(tmp_path, data=data).read_text("utf-8").partition('id="mistakes"')[2]
    for uri, name in re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="(test/\d+)"', section)[:3]:
        image = Image.open(io.BytesIO(base64.b64decode(uri)))
        assert np.array_equal(np.asarray(image), np.asarray(data["test"].image(int(name.partition("/")[2]))))


def test_another_image_at_the_same_place_is_not_shown_as_the_old_one(tmp_path):
    data = example_run(tmp_path)
    turned = {split: source.select(range(len(source))[::-1]) for split, source in data.items()}
    page = read(write_report(tmp_path, data=turned))
    assert not page.all("img")
    assert "cannot be read" in page.text


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["evaluation.json", "predictions.csv"], "No figures yet."),
        (["predictions.csv"], "No list of mistakes yet."),
        (["metrics.jsonl"], "No curves yet."),
    ],
)
def test_what_is_missing_is_named_and_the_rest_is_shown(tmp_path, gone, said):
    data = example_run(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    page = read(write_report(tmp_path, data=data))
    assert said in page.text
    assert "vitreous fit photos/" in page.text
    assert "30 of 90 images" in page.text


def test_without_images_the_page_says_where_they_were(tmp_path):
    example_run(tmp_path)
    page = read(write_report(tmp_path, data=None))
    assert "The images are not where this run found them ( photos/ )." in page.text
    assert not page.all("img")


def test_a_run_that_stopped_at_once_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1}')
    page = read(write_report(tmp_path))
    assert page.text.count("yet.") == 7
    assert "No data summary." in page.text


def test_a_line_of_metrics_cut_short_is_left_out(tmp_path):
    example_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"split": "train", "step": 40')
    assert "Loss" in read(write_report(tmp_path)).text


def test_steps_that_stood_out_or_were_skipped_are_told_with_how_to_look_at_one(tmp_path):
    data = example_run(tmp_path)
    assert "stood out" not in read(write_report(tmp_path, data=data)).text
    run = RunFolder(tmp_path)
    run.append({"step": 123, "event": "spike", "loss": 4.5, "usual_loss": 1.25})
    text = read(write_report(tmp_path, data=data)).text
    assert "1 step stood out or was skipped step 123: loss 4.5, usually 1.25 One of them" in text
    assert f"vitreous replay {tmp_path} --step 123" in text
    run.append(
        {"step": 130, "event": "spike", "loss": 9.0, "usual_loss": 2.0, "grad_norm": 40.0, "usual_grad_norm": 0.5}
    )
    run.append({"step": 140, "event": "skipped", "loss": math.nan})
    for step in range(200, 400):
        run.append({"step": step, "event": "skipped", "loss": math.nan})
    text = read(write_report(tmp_path, data=data)).text
    assert "203 steps stood out or were skipped" in text
    assert "step 130: loss 9, usually 2; norm of the gradient 40, usually 0.5" in text
    assert "step 140: skipped: loss or gradient was no finite number" in text
    assert f"All of them: {tmp_path}/metrics.jsonl" in text


def test_parameters_are_read_from_the_model_file_when_there_is_no_model(tmp_path):
    from safetensors.numpy import save_file

    example_run(tmp_path)
    (tmp_path / "model").mkdir()
    save_file({"a": np.zeros((3, 5)), "b": np.zeros(7)}, tmp_path / "model" / "model.safetensors", {"k": "v"})
    assert "Parameters 22" in read(write_report(tmp_path)).text


def test_no_run_or_a_damaged_one_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        write_report(tmp_path)
    example_run(tmp_path)
    (tmp_path / "predictions.csv").write_text("split,index\ntest,one\n")
    with pytest.raises(InputError, match=r"cannot read .*predictions\.csv"):
        write_report(tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*evaluation\.json"):
        write_report(tmp_path)


def test_names_cannot_break_out_of_the_page(tmp_path):
    classes = (EVIL, "dog'\"<b>", "eel")
    images = tmp_path / "images"
    names = [
        "<script>alert(3)<!script>.jpg",
        "'\" onload='alert(4).jpg",
        *(f"plain{i}.jpg" for i in range(10)),
    ]
    data = {split: example_files(images, names, classes=classes) for split in ("train", "test")}
    always_eel = np.tile([0.1, 0.1, 0.8], (len(names), 1))
    run = tmp_path / "run<b>"
    write_run(run, data, predicted={"train": always_eel, "test": always_eel})
    record = json.loads((run / "run.json").read_text())
    record.update(command=f"vitreous {EVIL}", plan=[EVIL], machine={EVIL: EVIL}, config={EVIL: [EVIL]})
    record["data"]["notes"] = [EVIL]
    (run / "run.json").write_text(json.dumps(record))
    page = read(write_report(run, data=data, classifier=example_classifier(), view=VIEW))
    assert len(page.all("script")) == 1
    assert {tag for tag, _ in page.elements}.isdisjoint({"iframe", "object", "base", "form"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert EVIL in page.text
    assert names[0] in [image["alt"] for image in page.all("img")]


def test_a_file_name_that_is_no_text_does_not_stop_the_page(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    images = tmp_path / "images"
    try:
        source = example_files(images, ["a.jpg", "b.jpg", name], classes=("cat", "dog"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    wrong = np.array([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])
    write_run(tmp_path / "run", {"train": source, "test": source}, predicted={"train": wrong, "test": wrong})
    page = read(write_report(tmp_path / "run", data={"train": source, "test": source}))
    assert "caf?.jpg" in page.text
    assert "caf?.jpg" in [image["alt"] for image in page.all("img")]


def test_the_page_asks_nothing_of_the_network(tmp_path):
    path = complete(tmp_path)
    text, page = path.read_text("utf-8"), read(path)
    assert not re.search("https?:", text)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy


def test_images_have_texts_tables_captions_and_headings_an_order(tmp_path):
    page = read(complete(tmp_path))
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("num_classes", [2, 40, 41, 1000])
def test_any_number_of_classes_has_a_readable_confusion(tmp_path, num_classes):
    classes = tuple(f"class {i}" for i in range(num_classes))
    page = read(
        write_report(tmp_path, data=example_run(tmp_path, classes=classes, num_images=max(4 * num_classes, 60)))
    )
    section = page.text[page.text.index("Confusion Rows") : page.text.index("Classes Precision")]
    assert "Confused most" in section
    assert ("predicted class 1: " in section) == (num_classes <= 40)
    assert (tmp_path / "report" / "index.html").stat().st_size < 2_000_000


def test_a_page_full_of_photos_stays_below_two_megabytes(tmp_path):
    data = example_run(tmp_path, num_images=200, side=200)
    path = write_report(tmp_path, data=data, classifier=example_classifier(), view=VIEW)
    assert path.read_text("utf-8").count("data:image/jpeg") > 24
    assert path.stat().st_size < 2_000_000


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path):
    data = example_run(tmp_path)
    path = write_report(tmp_path)
    assert not read(path).all("img")
    assert read(write_report(tmp_path, data=data)).all("img")
    assert [entry.name for entry in (tmp_path / "report").iterdir()] == ["index.html"]
