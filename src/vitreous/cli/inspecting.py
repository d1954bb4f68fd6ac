"""The command that looks inside a model: inspect."""

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitreous.cli.app import ClassNames, Device, TrainedModel, Whole, app, class_names, print_json
from vitreous.errors import InputError, some
from vitreous.tables import table

if TYPE_CHECKING:
    from vitreous.console import Console
    from vitreous.inspection.findings import Inspection

RECORD = "inspect.json"


@app.command
def inspect(
    model: TrainedModel,
    /,
    *images: str,
    only: str | None = None,
    page: bool = False,
    figures: bool = False,
    against: str | None = None,
    layers: str | None = None,
    heads: str | None = None,
    gallery: str | None = None,
    layout: Literal["tsne", "umap"] = "tsne",
    max_images: Whole = 128,
    batch_size: Whole = 32,
    classes: ClassNames = None,
    out: str | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Look inside a model: attention, positions, filters, features, explanations, as figures or as a page.

    Parameters
    ----------
    images
        Image files, or folders of them; of a run, by default what it held out. Without images only positions
        and filters are looked at.
    only
        Parts to look at, with commas between: positions, filters, distance, norms, attention, rollout, features,
        lens, explanations, layout, neighbours.
    page
        Write a page to click on, index.html, instead of figures.
    figures
        With --page: write the figures too, each as .pdf and .png.
    against
        A second model, to be seen beside the first on the page.
    layers
        Whose attention is mapped, such as 0,5,-1; by default the last in figures, and all on the page.
    heads
        Whose attention is mapped, such as 0,2; by default all.
    gallery
        Labelled images, as for fit, to look for the nearest neighbours of the images in.
    layout
        How images are laid out by their features; umap is the extra vitreous[umap].
    max_images
        Images to measure; of more, as many at even distances. Six of them get maps of their own.
    batch_size
        Images computed at a time.
    out
        The folder to write, which also gets inspect.json; what an earlier inspect wrote there is replaced. By
        default inspect-NAME, and for a run RUN/report/inspect.
    json
        Print a JSON object.
    """
    from vitreous.console import Console
    from vitreous.evaluation.held_out import held_out_images
    from vitreous.files import write_folder
    from vitreous.inspection.checkpoint import check_parts, inspect_checkpoint
    from vitreous.inspection.checkpoint_page import checkpoint_page
    from vitreous.inspection.figure_style import check_matplotlib
    from vitreous.inspection.figures import figure_files
    from vitreous.predict import load

    for option, value in (("--max-images", max_images), ("--batch-size", batch_size)):
        if value < 1:
            raise InputError(f"{option} must be at least 1, got {value}")
    parts = None if only is None else [part.strip() for part in only.split(",")]
    check_parts(parts)
    if against is not None and not page:
        raise InputError("--against shows two models side by side on the page; add --page")
    figures = figures or not page
    if gallery is not None and not figures:
        raise InputError("--gallery is for figures, the page shows no neighbours; add --figures")
    if figures:
        check_matplotlib()
    mapped = numbers("--layers", layers, default=None if page else [-1])
    folder = Path(out) if out is not None else default_folder(model)
    check_folder(folder)
    console, names = Console(), class_names(classes)
    loaded = load(model, classes=names, device=device, progress=console.say)
    other = None if against is None else load(against, device=device, progress=console.say)
    if other is not None and names is not None and not other.named and len(names) == len(other.classes):
        other.classes = tuple(names)
    min_side = max(each.view.min_side for each in (loaded, other) if each is not None)
    pictures, files = find_pictures(model, images, most=max_images, min_side=min_side, console=console)
    options: dict[str, Any] = {
        "files": files,
        "only": parts,
        "skip": () if figures else ("layout", "neighbours"),
        "layers": mapped,
        "heads": numbers("--heads", heads, default=None),
        "gallery": None if gallery is None else held_out_images(gallery, model=model, console=console).source,
        "method": layout,
        "max_images": max_images,
        "batch_size": batch_size,
        "console": console,
    }
    called = [short_name(name) for name in (model, against) if name is not None]
    called = called if len({*called}) == len(called) else [model, against or ""]
    looks = [(loaded, inspect_checkpoint(loaded, pictures, name=called[0], **options))]
    if other is not None:
        looks.append((other, inspect_checkpoint(other, pictures, name=called[1], **options)))
    seen = looks[0][1]
    for part, reason in seen.left_out.items() if pictures else ():
        console.say(f"left out: {part}: {reason}")
    content = figure_files(seen) if figures else {}
    if page:
        hint = f"vitreous inspect {shlex.quote(model)} IMAGES --page"
        content["index.html"] = checkpoint_page(looks, command=hint)
    record = {"vitreous": "inspect", "files": sorted(content), "checkpoints": [each.numbers() for _, each in looks]}
    content[RECORD] = jsonlib.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
    write_folder(folder, content)
    if json:
        print_json({"written": str(folder), **facts(seen)})
    else:
        print(table(seen.rows()))
        print(f"\n{len(content)} files in {folder}" + (f"; open {folder / 'index.html'}" if page else ""))
    return 0


def facts(seen: "Inspection") -> dict[str, Any]:
    """The table and what stands beside it, for machines."""
    facts: dict[str, Any] = {"model": seen.title, "parameters": seen.parameters, "images": len(seen.files)}
    if layers := seen.by_layer():
        facts["layers"] = layers
    if seen.explanations is not None:
        facts["faithfulness"] = {
            name: {
                "deletion": float(explained.faithfulness.deletion_area.mean()),
                "insertion": float(explained.faithfulness.insertion_area.mean()),
            }
            for name, explained in seen.explanations.items()
        }
    return {**facts, "left_out": seen.left_out}


def numbers(option: str, text: str | None, *, default: list[int] | None) -> list[int] | None:
    """Whole numbers with commas between."""
    if text is None:
        return default
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas between, such as 0,5,-1; got {text!r}") from None


def short_name(model: str) -> str:
    """What to call a model that was given by this name: the last part of it that says something."""
    path = Path(model.rpartition(":")[2])
    if path.is_file():
        path = path.parent / path.stem
    return (path.parent if path.name == "model" else path).resolve().name or "model"


def default_folder(model: str) -> Path:
    """Where to write when nothing is said."""
    from vitreous.run_folder import RunFolder

    run = RunFolder(Path(model).expanduser())
    return run.report.parent / "inspect" if run.exists() else Path(f"inspect-{short_name(model)}")


def check_folder(folder: Path) -> None:
    """Nothing, if `folder` can be written and holds nothing but what this command wrote.

    Raises:
        InputError: if not.
    """
    from vitreous.files import check_writable, read_text

    if not folder.name:
        raise InputError(f"--out is {str(folder)!r}; give the name of a folder")
    if folder.exists():
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; choose another folder with --out")
        there = {entry.name for entry in folder.iterdir()}
        try:
            record = jsonlib.loads(read_text(folder / RECORD))
            ours = {RECORD, *record["files"]} if record["vitreous"] == "inspect" else set()
        except (OSError, ValueError, KeyError, TypeError):
            ours = set()
        if foreign := sorted(there - ours):
            what = some([name.encode("utf-8", "replace").decode() for name in foreign], most=3)
            raise InputError(f"{folder} holds what inspect did not write ({what}); choose another folder with --out")
    check_writable(folder.with_name(f".{folder.name[:80]}.new"))


def find_pictures(
    model: str, images: tuple[str, ...], *, most: int, min_side: int, console: "Console"
) -> tuple[list[Any], list[str]]:
    """Images and their names: the files asked for, or some of what a run held out, or none."""
    from vitreous.data.decode import BadImage
    from vitreous.evaluation.held_out import splits_of
    from vitreous.inspection.pictures import evenly
    from vitreous.predictions import image_files
    from vitreous.run_folder import RunFolder

    run = RunFolder(Path(model).expanduser())
    if images:
        files = list(image_files(images, console=console))
        return readable([files[i] for i in evenly(len(files), most)], min_side=min_side, console=console)
    if not run.exists():
        return [], []
    try:
        splits = splits_of(run)
        source = splits.get("test") or splits.get("dev") or splits["val"]
        chosen = evenly(len(source), most)
        found = [source.image(i, min_side=min_side) for i in chosen]
    except (InputError, BadImage, OSError, KeyError) as error:
        console.say(f"the images that {run.path} held out are not where it found them ({error}); give images")
        return [], []
    console.say(f"looking at {len(chosen):,} images that {run.path} held out")
    return found, [source.name(i) for i in chosen]


def readable(files: list[Path], *, min_side: int, console: "Console") -> tuple[list[Any], list[str]]:
    """The images that can be read and their names; the others are named and left out.

    Raises:
        InputError: if none can be read.
    """
    from vitreous.data.decode import BadImage
    from vitreous.predict import to_image

    found, bad = {}, []
    for file in files:
        try:
            found[str(file)] = to_image(file, min_side=min_side)
        except BadImage as error:
            bad.append(str(error))
            console.say(f"left out: {error}")
    if bad and not found:
        raise InputError(f"none of {len(bad)} files is a readable image ({bad[0]}); give images")
    return [*found.values()], [*found]
