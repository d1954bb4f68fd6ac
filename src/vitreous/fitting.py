"""The practitioner's verb: look at the images, choose model and recipe, say why, train, measure, report."""

import time
from dataclasses import dataclass, replace

from vitreous import distributed
from vitreous.console import Console, duration
from vitreous.data.loader import training_batches
from vitreous.data.prepare import DataConfig, Prepared
from vitreous.distributed import World, cores
from vitreous.errors import InputError
from vitreous.experiment import Finished, carry_out, look
from vitreous.recipes.fine_tune import fine_tune
from vitreous.recipes.from_scratch import from_scratch
from vitreous.recipes.shipped import run_from_record
from vitreous.run_folder import choose_folder
from vitreous.training import Run, build_objective, optimizer_step
from vitreous.variants import paper_name, vit
from vitreous.vit import ViTConfig
from vitreous.weights.open import open_model
from vitreous.weights.product import Product

DEFAULT_MINUTES = 10.0
TIME_FOR_STEPS = 0.85  # of the minutes given; the rest goes to measuring, saving and the report
PROBE_S = 5.0
MIN_STEPS = 20


@dataclass(frozen=True)
class Request:
    """What the user asked for; saved in run.json, so that the same command goes on with the same run."""

    data: str
    val: str | None = None
    weights: str | None = None
    model: str | None = None
    image_size: int | None = None
    minutes: float | None = None
    allow_bad: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A run and why it is so."""

    run: Run
    reasons: list[str]
    """One line a decision."""
    seconds: float
    """Estimated training time."""


def fit(
    data: str,
    *,
    val: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    image_size: int | None = None,
    minutes: float | None = None,
    out: str | None = None,
    allow_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    dry_run: bool = False,
    console: Console | None = None,
) -> Finished | Plan:
    """A trained, measured, reported classifier of the images at `data`; with `dry_run` only the plan.

    Args:
        data: a folder of class folders, a tar of them, a CSV or JSONL manifest, or a name (`digits`,
            `cifar10:PATH`, `fashion-mnist:PATH`).
        val: held-out images, where `data` has none of its own and none shall be split off.
        weights: pre-trained weights to fine-tune; without, training starts from scratch.
        model: size and patch, such as "B/16"; by default chosen from the data and the machine.
        image_size: side in pixels; by default chosen.
        minutes: training time to plan for; 10 by default.
        out: the run's folder; by default a new one under runs/.
        allow_bad: go on although more than 1 % of the files cannot be read.

    Raises:
        InputError: if the data or an argument cannot be used.
        Stopped: if it was interrupted; the same call goes on.
    """
    console = console or Console()
    request = Request(data, val, weights, model, image_size, minutes, allow_bad, seed)
    if minutes is not None and minutes <= 0:
        raise InputError(f"--minutes must be above 0, got {minutes:g}")
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {image_size}")
    if model is not None:
        vit(model)  # a name that is wrong is said before the images are looked at
    start = open_model(weights) if weights else None
    world = distributed.start(device=device)
    name = data.partition(":")[0] if ":" in data else data.rstrip("/").rpartition("/")[2].partition(".")[0]
    folder = choose_folder(out, name or "run", same=lambda record: record.get("request") == vars(request))
    config = DataConfig(path=data, val=val, allow_bad=allow_bad, split_seed=seed)
    begun = folder.read() if folder.exists() else None
    if begun is not None and begun.get("request") != vars(request):
        raise InputError(f"{folder.path} holds a run of another command ({begun['command']}); choose another --out")
    console.say(f"looking at {data}")
    prepared = look(config, folder, console, dry_run=dry_run)
    for line in describe(prepared):
        console.say(line)
    if begun is not None:
        run = run_from_record(begun, str(folder.record))
        plan = Plan(run, begun["plan"], 0.0)
    else:
        plan = make_plan(prepared, config, request, start, world)
    for line in plan.reasons:
        console.say(line)
    if dry_run:
        return plan
    details = {"request": vars(request), "plan": plan.reasons}
    return carry_out(plan.run, folder, prepared=prepared, world=world, console=console, details=details)


def describe(prepared: Prepared) -> list[str]:
    """What was found in the data, a line a fact."""
    summary = prepared.summary
    counts = {split: sum(classes.values()) for split, classes in summary["splits"].items()}
    sizes = summary["sizes"]
    lines = [
        f"  {len(prepared.classes)} classes, "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
        + f" images, about {sizes['width']['median']:.0f} x {sizes['height']['median']:.0f} pixels"
    ]
    duplicates = summary["duplicates"]
    kinds = {"within": "within a split", "across_splits": "in two splits", "across_classes": "in two classes"}
    if found := [
        f"{duplicates[kind]['count']:,} {words}" for kind, words in kinds.items() if duplicates[kind]["count"]
    ]:
        lines.append(f"  duplicates: {', '.join(found)} (which were kept: split.csv)")
    return lines + [f"  {note}" for note in summary["notes"]]


def make_plan(prepared: Prepared, config: DataConfig, request: Request, start: Product | None, world: World) -> Plan:
    """Model, resolution, recipe and steps for these data on this machine, with reasons."""
    run = _fine_tuning(request, start) if start is not None else _from_scratch(prepared, request, world)
    workers = _workers(prepared, world)
    run = replace(run, data=config, seed=request.seed, num_workers=workers)
    images = len(prepared.train)
    run = replace(run, batch_size=max(min(run.batch_size, images), 1))

    step_s = _seconds_per_step(run, prepared, world)
    epochs = _epochs(images, fine_tuning=request.weights is not None)
    wanted = max(round(epochs * images / run.batch_size), 100)
    minutes = request.minutes or DEFAULT_MINUTES
    affordable = max(int(minutes * 60 * TIME_FOR_STEPS / step_s), MIN_STEPS)
    steps = min(wanted, affordable)
    image_s = step_s / run.batch_size / 3  # a forward pass is a third of a training step
    checks = max(1, min(10, int(0.1 * steps * step_s / max(image_s * min(len(prepared.held_out[1]), 500), 1e-9))))
    run = replace(run, steps=steps, evaluations=checks, evaluation_images=500 if image_s > 1e-3 else 2000)
    seconds = steps * step_s * 1.1
    passes = steps * run.batch_size / images
    limit = f"{passes:.1f} passes over {images:,} images"
    if steps == affordable:
        limit += f", what {minutes:g} min allow (--minutes gives it more)"
    view, peak = run.train_view, getattr(run.learning_rate, "peak", 0.0)
    augmented = [
        name
        for name, used in {
            f"crops of {view.min_area:.0%} to 100 %": view.min_area < 1,
            "shifts": view.shift > 0,
            "flips": view.flip,
            "rotations": view.rotate > 0,
            "TrivialAugment": view.trivial_augment,
        }.items()
        if used
    ]
    origin = f"fine-tuned from {request.weights}" if request.weights else "from scratch (--weights would start higher)"
    reasons = [
        f"  model    ViT {paper_name(run.model)}, {origin}",
        f"  images   {run.train_view.image_size} pixels, {run.model.grid[0] ** 2} patches; {', '.join(augmented) or 'as they are'}",
        f"  recipe   {type(run.optimizer).__name__}, peak rate {peak:g}, batch {run.batch_size}, {steps:,} steps: {limit}",
        f"  machine  {world.device.type}, {world.threads} of {cores()} CPU cores (others are busy or reserved), "
        f"{run.num_workers} reader processes"
        if world.threads < cores()
        else f"  machine  {world.device.type}, {world.threads} CPU threads, {run.num_workers} reader processes",
        f"  time     about {duration(seconds)}: {step_s * 1000:.0f} ms a step, measured now",
    ]
    return Plan(run, reasons, seconds)


def _epochs(images: int, *, fine_tuning: bool) -> float:
    """Passes over the data that are worth their time, when there is time."""
    if fine_tuning:
        return min(max(5_000 / images, 3), 20)
    return min(max(300_000 / images, 100), 200)


def _fine_tuning(request: Request, product: Product) -> Run:
    """The fine-tuning recipe, with the shape and the preprocessing of the weights."""
    encoder = product.classifier.config.encoder
    if request.model is not None:
        asked = vit(request.model)
        shape = (asked.width, asked.depth, asked.patch_size)
        if shape != (encoder.width, encoder.depth, encoder.patch_size):
            raise InputError(
                f"{request.weights} holds a ViT {paper_name(encoder)}, not {request.model}; leave --model out"
            )
    size = request.image_size or product.view.image_size
    base = fine_tune()
    return replace(
        base,
        model=replace(encoder, image_size=_multiple(size, encoder.patch_size, request)),
        weights=request.weights,
        objective=replace(base.objective, pooling=product.classifier.config.pooling),
        eval_view=replace(product.view, image_size=size),
        train_view=replace(
            base.train_view,
            image_size=size,
            mean=product.view.mean,
            std=product.view.std,
            interpolation=product.view.interpolation,
        ),
    )


def _from_scratch(prepared: Prepared, request: Request, world: World) -> Run:
    """A small ViT whose grid suits the size of the images."""
    sizes, images = prepared.summary["sizes"], len(prepared.train)
    short = round(min(sizes["width"]["median"], sizes["height"]["median"]))
    gpu = world.device.type != "cpu"
    grey = set(prepared.summary["modes"]) <= {"1", "L", "I;16", "I"}
    model = _shape(request, short=short, images=images, gpu=gpu)
    size, small = model.image_size, model.image_size <= 96
    base = from_scratch()
    return replace(
        base,
        model=model,
        batch_size=64 if not gpu else 256,
        train_view=replace(
            base.train_view,
            image_size=size,
            min_area=1.0 if small else 0.35,
            shift=0.125 if small else 0.0,
            flip=not grey,
            trivial_augment=not grey,
        ),
        eval_view=replace(base.eval_view, image_size=size, crop_ratio=1.0 if small else 0.9),
    )


def _shape(request: Request, *, short: int, images: int, gpu: bool) -> ViTConfig:
    """The encoder: as asked, or so small that a laptop passes over the data often enough."""
    if request.model is not None:
        asked = vit(request.model)
        default = asked.image_size if short > 96 else max(round(short / asked.patch_size), 1) * asked.patch_size
        return replace(asked, image_size=_multiple(request.image_size or default, asked.patch_size, request))
    size = request.image_size or (short if short <= 96 else 224 if gpu else 128)
    patch = 2 if size <= 16 else 4 if size <= 40 else 8 if size <= 96 else 16
    if request.image_size is None:
        size = max(round(size / patch), 2) * patch
    shape = "192x12" if gpu else "64x6" if images < 5_000 and size <= 16 else "128x6"
    return vit(f"{shape}/{patch}", image_size=_multiple(size, patch, request))


def _multiple(size: int, patch: int, request: Request) -> int:
    if size % patch or size < patch:
        nearest = max(round(size / patch), 1) * patch
        raise InputError(f"--image-size {size} does not divide into patches of {patch}; take {nearest}")
    return size


def _workers(prepared: Prepared, world: World) -> int:
    """Reader processes: none for pixels in memory, few on a CPU that also trains."""
    if "array" in prepared.summary["formats"] and world.device.type == "cpu":
        return 0
    return max(cores() - world.threads, 0) if world.device.type == "cpu" else max(min(cores() - 1, 12), 1)


def _seconds_per_step(run: Run, prepared: Prepared, world: World) -> float:
    """Time of one training step of `run`, reading included, from a few of them; nothing is kept."""
    objective = build_objective(replace(run, weights=None), num_classes=len(prepared.classes)).to(world.device)
    optimizer = run.optimizer.build(objective)
    batches = training_batches(
        prepared.train,
        run.train_view,
        batch_size=run.batch_size,
        seed=run.seed,
        first_step=0,
        steps=50,
        num_workers=0,
        device=world.device,
    )
    times: list[float] = []
    began = time.monotonic()
    for step, batch in enumerate(batches):
        started = time.monotonic()
        float(optimizer_step(run, objective, optimizer, batch, step=step, world=world)["loss"])
        times.append(time.monotonic() - started)
        if time.monotonic() - began > PROBE_S and step > 0:
            break
    return (time.monotonic() - began - times[0]) / max(len(times) - 1, 1)
