"""The commands. Results go to stdout, progress to stderr; heavy imports wait inside the functions."""

import errno
import io
import json as jsonlib
import math
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

import vitreous
from vitreous.errors import InputError, did_you_mean
from vitreous.tables import class_rows, confusion_rows, figure_rows, table

EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


def _whole(kind: type, tokens: Any) -> int:
    """An int from the command line; cyclopts would cut 4.5 to 4."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise InputError(f"{tokens[0].keyword} takes a whole number, got {tokens[0].value!r}") from None


Whole = Annotated[int, Parameter(converter=_whole)]

app = App(
    name="vitreous",
    version=vitreous.__version__,
    help="The Vision Transformer, whole and see-through. Start with: vitreous fit FOLDER-OF-PHOTOS",
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
)


@app.command
def fit(
    data: str,
    /,
    *,
    val: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    image_size: Whole | None = None,
    minutes: float | None = None,
    out: str | None = None,
    allow_bad: bool = False,
    seed: Whole = 0,
    device: str = "auto",
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Train a classifier on your images: look, plan, train, measure, report.

    Parameters
    ----------
    data
        A folder of class folders (train/val/test inside are found), a tar of them, a CSV or JSONL list, or a
        name: digits, cifar10:PATH, fashion-mnist:PATH.
    val
        Other data to measure on; by default what DATA holds out as test or val, else a fifth of it.
    weights
        Pre-trained weights to fine-tune: a run, a folder, a file, timm:NAME.TAG or hub:OWNER/NAME.
    model
        Size and patch, such as B/16, vit_small_patch16_224 or 128x6/4; by default chosen.
    image_size
        Side in pixels; by default chosen.
    minutes
        Training time to plan for; 10 by default.
    out
        The run's folder; by default a new one under runs/.
    allow_bad
        Go on although more than 1 % of the files cannot be read.
    seed
        Source of every random choice.
    device
        cpu, cuda, cuda:1, mps; by default the accelerator if there is one.
    dry_run
        Look and plan, then stop.
    json
        Print the figures as JSON.
    """
    from vitreous.experiment import Finished
    from vitreous.fitting import fit as carry_out_fit

    result = carry_out_fit(
        data,
        val=val,
        weights=weights,
        model=model,
        image_size=image_size,
        minutes=minutes,
        out=out,
        allow_bad=allow_bad,
        seed=seed,
        device=device,
        dry_run=dry_run,
    )
    if isinstance(result, Finished):
        return _finish(result, json=json)
    if json:
        _print_json({"config": result.run.to_dict(), "plan": result.reasons, "seconds": result.seconds})
    else:
        print("\n".join(result.reasons))
    return 0


@app.command
def train(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str | None = None,
    minutes: float | None = None,
    device: str = "auto",
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Carry out a recipe, with any of its fields changed: vitreous train smoke --model.depth 6.

    Parameters
    ----------
    recipe
        A shipped recipe (smoke, from_scratch, fine_tune), my_file.py:function, or a saved RUN/run.json.
    overrides
        Any field of the run by its dotted name; --dry-run lists them all.
    out
        The run's folder; by default a new one under runs/.
    minutes
        Stop after this time, saved, with exit code 75; the same command goes on.
    device
        cpu, cuda, cuda:1, mps; by default the accelerator if there is one.
    dry_run
        Print every field of the run, what data and model they name, then stop.
    json
        Print the result as JSON.
    """
    from vitreous import distributed
    from vitreous.console import Console
    from vitreous.experiment import carry_out, check_apart, look, preview
    from vitreous.fields import override, walk
    from vitreous.recipes.shipped import recipe as find_recipe
    from vitreous.run_folder import choose_folder

    if minutes is not None and not (0 <= minutes < math.inf):
        raise InputError(f"--minutes must be 0 or more, got {minutes:g}")
    run = override(find_recipe(recipe), dict(_pairs(overrides)))
    if dry_run:
        if not json:
            print(table([(f"--{field.path}", str(field.value), field.doc) for field in walk(run)]))
            print()
        facts = preview(run)
        if json:
            _print_json({"config": run.to_dict(), "preview": facts})
        else:
            print(table(list(facts.items())))
        return 0
    name = Path(recipe.rpartition(":")[2]).absolute()
    name = name.parent.name if name.suffix == ".json" else name.name
    folder = choose_folder(
        out, name, same=lambda record: record.get("config") == jsonlib.loads(jsonlib.dumps(run.to_dict()))
    )
    console, world = Console(), distributed.start(device=device)
    limit = None if minutes is None else minutes * 60
    check_apart(folder, run.data)
    with folder.claimed():
        prepared = look(run.data, folder, console)
        finished = carry_out(run, folder, prepared=prepared, world=world, console=console, time_limit_s=limit)
    return _finish(finished, json=json)


@app.command
def evaluate(
    model: str,
    data: str,
    /,
    *,
    classes: str | None = None,
    device: str = "auto",
    out: str | None = None,
    json: bool = False,
) -> int:
    """Measure a model on labelled images: top-1, top-5, per class, calibration, confusion, 95 % intervals.

    Parameters
    ----------
    model
        A run, a product folder, a weights file, timm:NAME.TAG or hub:OWNER/NAME.
    data
        Labelled images, as for fit; of several splits test counts, else val. Classes are matched by name.
    classes
        A file with the model's class names, one a line in the order of its outputs, if the weights have none.
    device
        cpu, cuda, cuda:1, mps; by default the accelerator if there is one.
    out
        Write what the model says of every image into this CSV file.
    json
        Print the figures as JSON.
    """
    from vitreous.console import Console
    from vitreous.evaluation.classify import evaluate as measure
    from vitreous.evaluation.classify import predictions_csv
    from vitreous.evaluation.held_out import held_out_images
    from vitreous.files import write_text
    from vitreous.predict import load
    from vitreous.predictions import check_table

    if out is not None:
        check_table(Path(out), (".csv",))
    console = Console()
    loaded = load(model, classes=_names(classes), device=device, progress=console.say)
    held_out = held_out_images(data, model=model, console=console)
    split, source = held_out.split, held_out.source
    figures, predicted = measure(
        loaded.inference,
        source,
        loaded.view,
        classes=loaded.classes,
        split=split,
        world=loaded.world,
        console=console,
    )
    if out is not None:
        rows = {split: (source, list(range(len(source))), predicted)}
        write_text(Path(out), predictions_csv(rows, classes=loaded.classes))
    if json:
        _print_json({**figures, "unreadable": [{"file": file.name, "reason": file.reason} for file in held_out.bad]})
    else:
        print(table(figure_rows(figures)))
        print()
        print(table([("class", "images", "precision", "recall", "F1"), *class_rows(figures)]))
        if confused := confusion_rows(figures):
            print()
            print(table([("most confused", "taken for", "images"), *confused]))
    return 0


@app.command
def predict(
    model: str,
    images: str,
    /,
    *more: str,
    top: Whole = 5,
    classes: str | None = None,
    out: str | None = None,
    device: str = "auto",
    json: bool = False,
) -> int:
    """Name what is in images.

    Parameters
    ----------
    model
        A run, a product folder, a weights file, timm:NAME.TAG or hub:OWNER/NAME.
    images
        Image files, or folders of them.
    top
        Classes to name for each image.
    classes
        A file with the model's class names, one a line in the order of its outputs, if the weights have none.
    out
        Write a table into this file: .csv, .jsonl or .parquet.
    device
        cpu, cuda, cuda:1, mps; by default the accelerator if there is one.
    json
        Print one JSON object a line instead of a table.
    """
    from vitreous.console import Console
    from vitreous.predict import load
    from vitreous.predictions import check_table, predict_files, write_predictions

    if top < 1:
        raise InputError(f"--top must be at least 1, got {top}")
    if out is not None:
        check_table(Path(out))
    console = Console()
    loaded = load(model, classes=_names(classes), device=device, progress=console.say)
    predictions, unreadable = predict_files(loaded, [images, *more], top=top, console=console)
    if out is not None:
        write_predictions(Path(out), predictions)
    if out is not None and not json:
        print(f"{len(predictions):,} predictions in {out}")
    elif json:
        for said in predictions:
            print(jsonlib.dumps({"file": said.file, "top": said.top}, ensure_ascii=False))
    elif predictions:
        print(table([(str(said.file), *(f"{name} {score:.1%}" for name, score in said.top)) for said in predictions]))
    if unreadable:
        for reason in unreadable if len(unreadable) > 3 else ():
            console.say(f"left out: {reason}")
        total = len(unreadable) + len(predictions)
        raise InputError(f"{len(unreadable):,} of {total:,} files are no readable image: {'; '.join(unreadable[:3])}")
    return 0


@app.command
def report(run: str, /, *, json: bool = False) -> int:
    """Write the report of a run again: one page, RUN/report/index.html, that needs no network.

    Parameters
    ----------
    run
        The folder of a run.
    json
        Print the path as JSON.
    """
    from vitreous.experiment import show
    from vitreous.run_folder import RunFolder

    path = show(RunFolder(Path(run)))
    if json:
        _print_json({"report": str(path)})
    else:
        print(path)
    return 0


@app.command
def convert(
    source: str,
    destination: str,
    /,
    *,
    to: str = "vitreous",
    verify: bool = False,
    json: bool = False,
) -> int:
    """Write a model in the files of another project: vitreous, timm, hf, torchvision or google.

    Parameters
    ----------
    source
        A run, a folder or file in any layout that vitreous reads, timm:NAME.TAG, hf:OWNER/NAME or
        google:DIRECTORY/NAME.npz.
    destination
        A folder, which also gets the preprocessing and class names; or one file, .safetensors or .npz.
    to
        vitreous, timm, hf (transformers), torchvision, or google (the paper's .npz).
    verify
        Read what was written, and compare the logits of both on random images.
    json
        Print a JSON object.
    """
    from vitreous.console import Console
    from vitreous.weights.convert import convert as carry_out
    from vitreous.weights.convert import verify as compare

    product = carry_out(source, Path(destination), to=to, progress=Console().say)
    facts: dict[str, Any] = {"written": destination, "layout": to, "model": product.describe()}
    if verify:
        agreement = compare(product, Path(destination))
        facts |= vars(agreement)
    if json:
        _print_json(facts)
        return 0
    print(f"{facts['model']} written as {to}: {destination}")
    if verify:
        print(
            f"logits differ by {facts['difference']:.2g} at most, of {facts['largest']:.3g}; "
            f"the same class for {facts['same_class']} of {facts['images']} random images"
        )
    return 0


@app.command
def selftest(model: str | None = None, /, *, json: bool = False) -> int:
    """Check in a few seconds that this machine computes what it should; exit code 1 if something does not hold.

    Parameters
    ----------
    model
        A model to check against the logits that were saved with it.
    json
        Print a JSON list.
    """
    from vitreous.console import Console
    from vitreous.selftest import selftest as check

    checks = list(check(model, progress=Console().say))
    if json:
        _print_json([vars(made) for made in checks])
    else:
        cells = [(made.name, made.expected, made.found, "holds" if made.holds else "DOES NOT HOLD") for made in checks]
        print(table([("check", "expected", "found", ""), *cells]))
    return 0 if all(made.holds for made in checks) else EXIT_BUG


@app.command
def models(pattern: str = "", /, *, json: bool = False) -> int:
    """List the published sizes: name, timm's name, parameters, GFLOPs, tokens.

    Parameters
    ----------
    pattern
        A name, or a part of either name, such as B/ or patch14.
    json
        Print a JSON list.
    """
    from vitreous.budget import cost, plain_classifier
    from vitreous.variants import PUBLISHED, encoder, timm_name

    rows = []
    for name in [name for name in PUBLISHED if name.lower() == pattern.lower()] or PUBLISHED:
        config = encoder(name)
        other = timm_name(config) or ""
        if pattern.lower() in name.lower() or pattern.lower() in other or pattern.lower() in f"vit-{name}".lower():
            rows.append((name, other, cost(plain_classifier(config))))
    if not rows:
        raise InputError(f"no model matches {pattern!r}{did_you_mean(pattern, PUBLISHED)}")
    if json:
        _print_json([{"name": name, "timm": other or None, **vars(spent)} for name, other, spent in rows])
    else:
        head = ("name", "timm", "parameters", "GFLOPs", "GMACs", "tokens")
        cells = [
            (name, other, f"{c.parameters:,}", f"{c.gflops:,.1f}", f"{c.gflops / 2:,.2f}", f"{c.tokens:,}")
            for name, other, c in rows
        ]
        print(table([head, *cells]))
        print(
            "\nat 224 pixels, with 1,000 classes; GMACs count a multiplication and its addition as one, GFLOPs as two"
        )
        print("other sizes: B/16@384 for the image, WIDTHxDEPTH/PATCH for the encoder")
    return 0


@app.command
def budget(
    model: str,
    /,
    *,
    images: float | None = None,
    epochs: float = 1.0,
    image_size: Whole | None = None,
    batch_size: Whole = 32,
    classes: Whole = 1000,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    optimizer: Literal["adamw", "sgd"] = "adamw",
    memory: float | None = None,
    tflops: float | None = None,
    devices: Whole = 1,
    json: bool = False,
) -> int:
    """Say what a model costs before it is trained: work, memory of a training step, length of a run.

    Parameters
    ----------
    model
        Size and patch, such as B/16, R50+B/16, R50x1, vit_small_patch16_224 or 128x6/4.
    images
        Training images, such as 303e6, to say what a run costs.
    epochs
        Passes of the run over the images.
    image_size
        Side in pixels; by default the model's.
    batch_size
        Images a step on each device.
    classes
        Classes told apart.
    precision
        What products are computed in; train takes bfloat16 on a GPU and float32 on a CPU.
    optimizer
        adamw or sgd, whose state is kept too.
    memory
        GiB of a device, to say the largest batch that fits.
    tflops
        TFLOP/s that a device achieves in training, not its peak; to say the time of the run.
    devices
        Devices that share the run.
    json
        Print a JSON object; memory in bytes.
    """
    import torch

    from vitreous.budget import cost, plain_classifier, training_exaflops
    from vitreous.budget import memory as step_memory
    from vitreous.optim import SGD, AdamW
    from vitreous.variants import encoder, title

    given = {"images": images, "epochs": epochs, "image-size": image_size, "batch-size": batch_size}
    given |= {"classes": classes, "memory": memory, "tflops": tflops, "devices": devices}
    for option, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{option} must be more than 0, got {value:g}")
    if tflops is not None and images is None:
        raise InputError("--tflops says how long a run takes; say with --images how long the run is")
    config = plain_classifier(encoder(model, **({"image_size": image_size} if image_size else {})), num_classes=classes)
    chosen = {"adamw": AdamW(), "sgd": SGD()}[optimizer]
    spent, held = cost(config), step_memory(config, optimizer=chosen.build, dtype=getattr(torch, precision))
    largest = None if memory is None else held.largest_batch(memory * 2**30)
    exaflops = None if images is None else training_exaflops(spent, images=images, epochs=epochs)
    days = None if exaflops is None or tflops is None else exaflops * 1e6 / (tflops * devices) / 86_400
    if json:
        step = {**vars(held), "batch_size": batch_size, "total": held.total(batch_size), "largest_batch": largest}
        _print_json({"name": model, **vars(spent), "memory": step, "exaflops": exaflops, "days": days})
        return 0

    def gib(number: int) -> str:
        return f"{number / 2**30:,.2f}"

    rows = [
        (title(config.encoder), "", f"{config.encoder.pixels}, {classes:,} classes"),
        ("parameters", f"{spent.parameters:,}", ""),
        ("tokens", f"{spent.tokens:,}", ""),
        ("work", f"{spent.gflops:,.2f}", f"GFLOPs an image, {spent.gflops / 2:,.2f} GMACs"),
        ("memory: parameters", gib(held.parameters), "GiB"),
        ("memory: gradients", gib(held.gradients), "GiB"),
        ("memory: optimizer", gib(held.optimizer), f"GiB, {type(chosen).__name__}"),
        ("memory: weights", gib(held.weights), f"GiB, as they are multiplied in {precision}"),
        ("memory: activations", gib(batch_size * held.activations), f"GiB, {batch_size:,} images"),
        ("memory: together", gib(held.total(batch_size)), "GiB"),
    ]
    if largest is not None:
        rows.append(("largest batch", f"{largest:,}", f"images in {memory:g} GiB"))
    if exaflops is not None:
        rows.append(("run", f"{exaflops:,.3f}", f"exaFLOPs, {epochs:g} x {images:,.0f} images"))
    if days is not None:
        rows.append(("time", f"{days:,.2f}", f"days, {devices:,} x {tflops:g} TFLOP/s"))
    print(table(rows))
    print("\nnot counted: workspaces of kernels, and what the allocator wastes")
    return 0


@app.command
def demo(*, out: str = "runs/demo", minutes: float = 2.0, json: bool = False) -> int:
    """Train on handwritten digits, from nothing to a report, in about two minutes.

    Parameters
    ----------
    out
        The run's folder; a finished demo there is shown again.
    minutes
        Training time to plan for.
    json
        Print the figures as JSON.
    """
    from vitreous.console import Console
    from vitreous.demo import demo as carry_out_demo

    finished, shown = carry_out_demo(out=out, minutes=minutes, console=Console())
    if not json:
        drawings = [drawing.splitlines() for drawing, _, _ in shown]
        print("\n".join("   ".join(lines) for lines in zip(*drawings)))
        verdicts = [f"a {label}: {said.label} {said.score:.1%}" for _, label, said in shown]
        print("   ".join(verdict.ljust(16) for verdict in verdicts) + "\n")
    return _finish(finished, json=json)


@app.command
def doctor(*, json: bool = False) -> int:
    """Show versions, devices, threads, disk and cache, for a first look or a bug report.

    Parameters
    ----------
    json
        Print a JSON object.
    """
    from vitreous.doctor import examine

    facts = examine()
    if json:
        _print_json(facts)
    else:
        print(table(list(facts.items())))
    return 0


def _finish(finished: Any, *, json: bool) -> int:
    """Figures, paths, and what to type next."""
    folder = finished.folder
    if json:
        _print_json({"run": str(folder.path), "report": str(finished.report), **finished.evaluation})
        return 0
    print(table(figure_rows(finished.evaluation)))
    print(f"\nrun      {folder.path}\nmodel    {folder.model}\nreport   {finished.report}")
    print(f"\nnext     vitreous predict {folder.path} IMAGES   ·   open {finished.report}")
    return 0


def _pairs(tokens: tuple[str, ...]) -> list[tuple[str, str]]:
    """Field names and values from `--a.b value` and `--a.b=value`."""
    rest, pairs = list(tokens), []
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if not name.startswith("--"):
            raise InputError(f"a field is changed by --name value, got {token!r}")
        if not equals:
            if not rest:
                raise InputError(f"{name} needs a value")
            value = rest.pop(0)
        pairs.append((name[2:].replace("-", "_"), value))
    return pairs


def _names(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {file}: {error}; give a text file, one name a line") from None


def _print_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=1, ensure_ascii=False))


def _complain(line: str) -> None:
    text = " ".join(line.split())
    with suppress(OSError):  # nobody listens
        print(f"vitreous: {text.encode('utf-8', 'replace').decode()}", file=sys.stderr, flush=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM while nothing was being trained."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    0 done; 1 our bug; 2 input, usage or data; 75 stopped early, can be gone on with; 130 and 143 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the shell has closed it
            stream.reconfigure(errors="backslashreplace")  # odd file names
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = _explain(error)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: BaseException) -> int:
    """Say in one line what ended the command; its exit code."""
    from vitreous.stopping import Stopped

    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        if error.errno == errno.EPIPE:  # the reader of our output has left, as `head` does
            return 0
        _complain("cannot write the result: the disk behind the output is full")
        return EXIT_INPUT
    if isinstance(error, Stopped):
        from vitreous.provenance import command_line

        _complain(f"{error}; saved. To go on, type the same command again: {command_line()}")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        _complain("stopped; no file is half written, and the same command can be typed again")
        return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    if isinstance(error, CycloptsError):
        _complain(f"{error} (vitreous --help, or vitreous COMMAND --help)")
        return EXIT_INPUT
    if isinstance(error, InputError):
        _complain(str(error))
        return EXIT_INPUT
    if isinstance(error, OSError) and error.filename is not None:  # of the user's, or they would be InputErrors
        _complain(f"{error.filename}: {error.strerror}; check that path and its permissions")
        return EXIT_INPUT
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        _complain("the device has too little memory; take a smaller --model or --image-size, or --batch_size in train")
        return EXIT_INPUT
    log = Path(tempfile.gettempdir()) / f"vitreous-error-{os.getpid()}.log"
    log.write_text("".join(traceback.format_exception(error)))
    _complain(f"a bug of ours: {type(error).__name__}: {error}; please report it with {log}")
    return EXIT_BUG
