"""The report of a run: one page that opens anywhere, made from the run folder and nothing else.

Whatever is missing (the run stopped early, the images have moved) is named on the page, with the command that
brings it. Every text from outside is escaped by the template; scripts but ours are refused by the page's own
content security policy, and so is the network.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from vitreous.classifier import Classifier
from vitreous.config import from_dict
from vitreous.data.source import Source
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.files import write_bytes
from vitreous.inspection.attention import attends, attention_maps
from vitreous.inspection.mislabelled import Prediction, likely_mislabelled, read_predictions
from vitreous.inspection.pictures import data_uri, evenly, heat, picture
from vitreous.inspection.plots import Series, confusion_chart, confusion_image, line_chart, reliability_chart
from vitreous.inspection.rollout import rollout
from vitreous.inspection.template import page_file, script_hash, template
from vitreous.run_folder import RunFolder
from vitreous.variants import title

MOST_THUMBNAILS = 24
THUMBNAIL_PX = 160
MOST_ATTENTION_IMAGES = 6
MOST_CHART_CLASSES = 40  # more make a confusion chart that nobody can read
MOST_PAIRS = 20
WATCHED = {"loss": "loss", "grad_norm": "norm of the gradient"}
COPIES = {"within": "in one split", "across_splits": "across splits", "across_classes": "across classes"}
OPTIONAL = "command config data data_fingerprint git machine plan seed started versions"  # of run.json


def write_report(
    run: Path,
    *,
    data: Mapping[str, Source] | None = None,
    classifier: Classifier | None = None,
    view: EvalView | None = None,
) -> Path:
    """RUN/report/index.html, written anew.

    Args:
        data: the run's splits by name, for thumbnails; without, the page says that the images are gone.
        classifier: the trained model in eval mode, for attention maps; `view` is what it was measured with.

    Raises:
        InputError: if `run` is no run folder, a file in it is damaged, or the page cannot be written.
    """
    folder = RunFolder(Path(run))
    record = dict.fromkeys(OPTIONAL.split()) | folder.read()
    evaluation = folder.figures() if folder.evaluation.exists() else None
    several = bool(evaluation and evaluation.get("multi_label"))
    predictions = [] if several else read_predictions(folder.predictions)  # there is no one label to be wrong
    held_out = [p for p in predictions if p.split != "train"]
    mistakes = sorted((p for p in held_out if p.predicted != p.label), key=lambda p: -p.confidence)
    suspects = likely_mislabelled(predictions)
    measurements = list(folder.measurements())
    script = page_file("report.js")
    page = template("report.html.jinja").render(
        run=folder.path.resolve().name,
        run_path=shlex.quote(str(folder.path)),
        record=record,
        evaluation=evaluation,
        model=_model(record, classifier),
        parameters=_parameters(folder, classifier),
        seconds=max((line.get("seconds", 0.0) for line in measurements), default=None),
        steps=max((line.get("step", 0) for line in measurements), default=0),
        data=_data(record["data"] or {}),
        charts=_curves(measurements),
        events=_events(measurements),
        confusion=_confusion(evaluation),
        several=several,
        reliability=reliability_chart(evaluation["reliability"]) if evaluation and not several else "",
        has_predictions=bool(predictions),
        has_data=bool(data),
        mistakes=[(p, _thumbnail(p, data)) for p in mistakes[:MOST_THUMBNAILS]],
        num_mistakes=len(mistakes),
        suspects=[(p, _thumbnail(p, data)) for p in suspects[:MOST_THUMBNAILS]],
        num_suspects=len(suspects),
        num_sampled=len(predictions),
        attention=_attention(data, classifier, view),
        inspected=(folder.report.parent / "inspect" / "index.html").is_file(),
        inspectable=classifier is not None and attends(classifier),
        css=Markup(page_file("report.css")),
        js=Markup(script),
        js_hash=script_hash(script),
    )
    write_bytes(folder.report, page.encode("utf-8", "replace"))  # a file name may hold bytes that are no text
    return folder.report


def _model(record: dict[str, Any], classifier: Classifier | None) -> str | None:
    try:
        encoder = classifier.config.encoder if classifier else from_dict(record["config"]["model"])
        return f"{title(encoder)}, {encoder.pixels}"
    except (InputError, KeyError, TypeError):
        return None


def _parameters(folder: RunFolder, classifier: Classifier | None) -> int | None:
    """From the model, or from the header of its file."""
    if classifier is not None:
        return sum(parameter.numel() for parameter in classifier.parameters())
    try:
        with open(folder.model / "model.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, OverflowError, MemoryError, KeyError):
        return None


def _data(summary: dict[str, Any]) -> dict[str, Any]:
    """Images by class and split, and the facts of `Prepared.summary` in words."""
    splits = {split: counts for split, counts in summary.get("splits", {}).items() if counts}
    bad, facts, groups = summary.get("bad", {}), [], []
    if sizes := summary.get("sizes"):
        low, middle, high = (
            " × ".join(f"{sizes[side][key]:.0f}" for side in ("width", "height")) for key in ("min", "median", "max")
        )
        facts.append(("Size in pixels", middle if low == high else f"{middle}, from {low} to {high}"))
    for name, key in (("Formats", "formats"), ("Colour modes", "modes")):
        if counts := summary.get(key):
            facts.append((name, ", ".join(f"{kind} {count:,}" for kind, count in counts.items())))
    if summary.get("rotated"):
        facts.append(("Turned by EXIF", f"{summary['rotated']:,}"))
    facts.append(("Unreadable files", f"{bad.get('count', 0):,}"))
    copies = []
    for kind, words in COPIES.items():
        found = summary.get("duplicates", {}).get(kind, {"count": 0, "first": []})
        groups += [(words, group) for group in found["first"]]
        if found["count"]:
            copies.append(f"{found['count']:,} {'group' if found['count'] == 1 else 'groups'} {words}")
    facts.append(("Equal images", ", ".join(copies) or "0"))
    facts.append(("Left out", f"{summary.get('excluded', 0):,}"))
    return {
        "path": summary.get("path", ""),
        "classes": summary.get("classes", []),
        "splits": splits,
        "totals": {
            split: summary.get("images", {}).get(split, sum(counts.values())) for split, counts in splits.items()
        },
        "largest": max((count for counts in splits.values() for count in counts.values()), default=1) or 1,
        "facts": facts if summary else [],
        "bad": bad.get("first", []),
        "groups": groups,
        "notes": summary.get("notes", []),
    }


def _curves(measurements: Sequence[dict[str, Any]]) -> list[Markup]:
    """Loss, accuracy, learning rate and speed over steps."""

    def series(split: str, key: str, name: str = "") -> Series:
        lines = [line for line in measurements if line.get("split") == split and line.get(key) is not None]
        return Series(name or split, [line["step"] for line in lines], [line[key] for line in lines])

    others = sorted({line.get("split", "train") for line in measurements} - {"train"})
    loss = [series(split, "loss") for split in ("train", *others)]
    accuracy = [series("train", "accuracy"), *(series(split, "top1") for split in others)]
    several = [
        series("train", "exact_match", "train, all classes right"),
        *(series(s, "map", f"{s} mAP") for s in others),
    ]
    charts = [
        line_chart(loss, title="Loss"),
        line_chart(accuracy, title="Accuracy", percent=True),
        line_chart(several, title="Mean average precision", percent=True),
        line_chart([series("train", "learning_rate", "rate")], title="Learning rate"),
        line_chart([series("train", "images_per_s", "images/s")], title="Speed"),
    ]
    return [chart for chart in charts if chart]


def _events(measurements: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Steps that were skipped, or stood out, with what is known of them in words."""
    found = []
    for line in measurements:
        if line.get("event") == "skipped":
            found.append((line["step"], "skipped: loss or gradient was no finite number"))
        elif line.get("event") == "spike":
            pairs = [(words, line.get(key), line.get(f"usual_{key}")) for key, words in WATCHED.items()]
            known = [pair for pair in pairs if isinstance(pair[1], float) and isinstance(pair[2], float)]
            words = [f"{name} {value:.3g}, usually {usual:.3g}" for name, value, usual in known]
            found.append((line["step"], "; ".join(words)))
    return found


def _confusion(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """A chart for few classes or a picture for many, and the pairs confused most."""
    if evaluation is None or "confusion" not in evaluation:
        return None
    matrix, names = evaluation["confusion"], [row["name"] for row in evaluation["per_class"]]
    counts = np.asarray(matrix, dtype=np.int64).reshape(len(names), len(names))
    wrong = counts - np.diag(np.diag(counts))
    worst = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]]
    pairs = [
        {"true": names[i], "predicted": names[j], "count": count, "share": count / counts[i].sum()}
        for i, j in worst
        if (count := int(wrong[i, j]))
    ]
    few = len(names) <= MOST_CHART_CLASSES
    return {
        "chart": confusion_chart(matrix, names) if few else None,
        "picture": None if few else data_uri("png", confusion_image(matrix)),
        "pairs": pairs,
        "num_classes": len(names),
    }


def _thumbnail(prediction: Prediction, data: Mapping[str, Source] | None) -> str | None:
    """The image as a data URI; None unless the very file is still there and can be read."""
    source = (data or {}).get(prediction.split)
    if source is None or prediction.index >= len(source) or source.name(prediction.index) != prediction.file:
        return None
    try:
        return picture(source.image(prediction.index, min_side=THUMBNAIL_PX), side=THUMBNAIL_PX)
    except (InputError, OSError):
        return None


def _attention(
    data: Mapping[str, Source] | None, classifier: Classifier | None, view: EvalView | None
) -> list[dict[str, str]]:
    """What the model sees of a few held-out images, and where it looks, as data URIs."""
    if not data or classifier is None or view is None or not attends(classifier):
        return []
    source = data.get("test") or data.get("val") or data.get("dev") or next(iter(data.values()))
    seen = list(_seen(source, view))
    if not seen:
        return []
    device = next(classifier.parameters()).device
    pixels = torch.stack([view(image) for _, image in seen])
    images = view.normalise(pixels.to(device))
    last, flow = attention_maps(classifier, images)[0].mean(dim=1), rollout(classifier, images)
    return [
        {
            "file": source.name(i),
            "label": source.label(i),
            "picture": picture(Image.fromarray(shown.permute(1, 2, 0).numpy()), side=224),
            "last": heat(a.cpu().numpy()),
            "rollout": heat(b.cpu().numpy()),
        }
        for (i, _), shown, a, b in zip(seen, pixels, last, flow)
    ]


def _seen(source: Source, view: EvalView) -> Iterator[tuple[int, Image.Image]]:
    """A few images, evenly spaced, that can still be read."""
    for i in evenly(len(source), MOST_ATTENTION_IMAGES):
        try:
            yield i, source.image(i, min_side=view.min_side)
        except (InputError, OSError):
            continue
