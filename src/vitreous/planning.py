"""What to train for given data on this machine: model, resolution, recipe and steps, each with its reason."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from vitreous.budget import plain_classifier
from vitreous.console import duration
from vitreous.cores import cores, idle_cores
from vitreous.data.augment import TrivialAugment
from vitreous.data.data_config import DataConfig
from vitreous.data.prepare import Prepared
from vitreous.data.source import Source
from vitreous.data.views import TrainView
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.head import LinearHead
from vitreous.objectives.supervised import Supervised
from vitreous.position import SinCos2d
from vitreous.recipes.fine_tune import fine_tune
from vitreous.recipes.from_scratch import from_scratch
from vitreous.run import Run
from vitreous.schedule import Cosine
from vitreous.tokens import Encoder
from vitreous.trainee import Trainee
from vitreous.variants import encoder as named_encoder
from vitreous.variants import title, vit
from vitreous.vit import ViTConfig, divisible_size
from vitreous.weights.product import Product

DEFAULT_MINUTES = 10.0
MOST_MINUTES = 366 * 24 * 60
TIME_FOR_STEPS = 0.85  # of the minutes given; the rest goes to measuring, saving and the report
PROBE_S = 3.0
MIN_STEPS = 20
MANY_PASSES = 20  # from here on a model from scratch learns by heart, unless hindered
MOST_PASSES = 200  # from scratch
CLEARLY = 0.9  # of the time of a step, or float32 is kept
SMALL = 96  # pixels; up to this, images are taken at their own size


@dataclass(frozen=True, kw_only=True)
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


def make_plan(prepared: Prepared, request: Request, *, config: DataConfig, start: Product | None, world: World) -> Plan:
    """Model, resolution, recipe and steps for these data on this machine, with reasons."""
    images, seconds = len(prepared.train), (request.minutes or DEFAULT_MINUTES) * 60
    run = _fine_tuning(request, start) if start is not None else _from_scratch(prepared, request, world)
    workers = _workers(prepared, world)
    run = replace(run, data=config, seed=request.seed, num_workers=workers, batch_size=min(run.batch_size, images))
    several = []
    if prepared.train.multi_label:
        run, bias = _for_several_classes(run, prepared.train)
        several = [
            f"  labels   several or none an image: sigmoid loss, scores begin at {bias:g}, as often as classes are"
        ]

    run, step_s = _in_faster_precision(run, prepared, world)
    if start is None and seconds * TIME_FOR_STEPS / step_s * run.batch_size / images > MANY_PASSES:
        run = _against_learning_by_heart(run)
        step_s = _seconds_per_step(run, prepared, world.with_precision(run.precision))
    affordable = max(int(seconds * TIME_FOR_STEPS / step_s), MIN_STEPS)
    most = min(max(5_000 / images, 3), 20) if start is not None else MOST_PASSES
    wanted = max(round(most * images / run.batch_size), 100)
    steps = min(wanted, affordable)
    run = replace(run, steps=steps, **_checks(run, steps, step_s, len(prepared.held_out[1])))

    limit = f"{steps * run.batch_size / images:.1f} passes over {images:,} images"
    if steps == affordable:
        limit += f", what {seconds / 60:g} min allow (--minutes gives it more)"
    origin = (
        f"fine-tuned from {request.weights}" if start is not None else "from scratch (--weights would start higher)"
    )
    peak = getattr(run.learning_rate, "peak", 0.0)
    spare = " (the others are busy or not for us)" if world.threads < cores() else ""
    reasons = [
        f"  model    {title(run.model)}, {origin}",
        f"  images   {run.model.pixels}, {run.model.grid[0]} x {run.model.grid[1]} patches; "
        + (", ".join(_alterations(run.train_view)) or "as they are"),
        f"  recipe   {type(run.optimizer).__name__}, peak rate {peak:.2g}, decay {run.optimizer.weight_decay:g}, "
        f"batch {run.batch_size}",
        *several,
        f"  length   {steps:,} steps: {limit}",
        f"  machine  {world.device.type}, {world.threads} of {cores()} CPU cores{spare}, {workers} reader processes, "
        + world.with_precision(run.precision).precision,
        f"  time     about {duration(steps * step_s / TIME_FOR_STEPS)}: {step_s * 1000:.0f} ms a step, measured now",
    ]
    return Plan(run, reasons, steps * step_s / TIME_FOR_STEPS)


def _checks(run: Run, steps: int, step_s: float, held_out: int) -> dict[str, int]:
    """How often to measure during training, so that it takes a tenth of the time at most."""
    image_s = step_s / run.batch_size / 3  # a forward pass is a third of a training step
    images = 500 if image_s > 1e-3 else 2000
    often = int(0.1 * steps * step_s / (image_s * min(held_out, images)))
    return {"num_evaluations": max(1, min(10, often)), "num_evaluation_images": images}


def _alterations(view: TrainView) -> list[str]:
    """What a training view does to images, in words."""
    done = {
        f"crops of {100 * view.min_area_ratio:.0f} to 100 %": view.min_area_ratio < 1,
        f"shifts to {100 * view.shift_ratio:.0f} %": view.shift_ratio > 0,
        f"turns to {view.rotate:g}°": view.rotate > 0,
        "flips": view.flip,
    }
    return [name for name, used in done.items() if used] + [type(view.augment).__name__] * (view.augment is not None)


def _fine_tuning(request: Request, product: Product) -> Run:
    """The fine-tuning recipe, with the shape and the preprocessing of the weights."""
    encoder = product.classifier.config.encoder
    size = request.image_size or product.view.image_size
    if request.model is not None:
        asked = named_encoder(request.model)
        size = request.image_size or (asked.image_size if "@" in request.model else size)
        if title(asked) != title(encoder):
            raise InputError(f"{request.weights} holds a {title(encoder)}, not {request.model}; leave --model out")
    base = fine_tune()
    return replace(
        base,
        model=_of_size(encoder, size),
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
    """A small ViT whose grid suits the size of the images, so small that the images are seen often enough."""
    sizes, gpu = prepared.summary["sizes"], world.device.type != "cpu"
    short = round(min(sizes["width"]["median"], sizes["height"]["median"]))
    model = _shape(request, short=short, images=len(prepared.train), gpu=gpu)
    size, small = model.image_size, max(model.image_shape) <= SMALL
    base = from_scratch()
    return replace(
        base,
        model=model,
        objective=replace(base.objective, pooling=plain_classifier(model).pooling),
        learning_rate=Cosine(peak=_peak(model)),  # 3e-3 at 64 and 2e-3 at 96 did well, 2.5 times that worse
        batch_size=256 if gpu else base.batch_size,
        train_view=replace(
            base.train_view,
            image_size=size,
            min_area_ratio=1.0 if small else 0.35,
            shift_ratio=base.train_view.shift_ratio if small else 0.0,
            flip=not _grey(prepared),
        ),
        eval_view=replace(base.eval_view, image_size=size, crop_ratio=1.0 if small else 0.9),
    )


def _for_several_classes(run: Run, train: Source) -> tuple[Run, float]:
    """`run` with a yes or no for each class, which begins at the share of images that show one on average."""
    assert isinstance(run.objective, Supervised)
    share = float(np.clip(train.class_counts().mean() / len(train), 1e-4, 0.5))
    bias = round(math.log(share / (1 - share)), 1)
    head = replace(run.objective.head, bias=bias) if isinstance(run.objective.head, LinearHead) else run.objective.head
    return replace(run, objective=replace(run.objective, loss="sigmoid", head=head)), bias


def _against_learning_by_heart(run: Run) -> Run:
    """`run` for images that are seen many times: stronger alterations and weight decay."""
    view = run.train_view
    small = max(view.shape) <= SMALL
    altered = replace(
        view,
        min_area_ratio=0.6 if small else 0.25,
        shift_ratio=0.1 if small else 0.0,
        rotate=10.0,
        augment=TrivialAugment() if view.flip else None,  # colours and mirror images are altered together, or neither
    )
    return replace(run, train_view=altered, optimizer=replace(run.optimizer, weight_decay=0.5))


def _grey(prepared: Prepared) -> bool:
    """Whether no image has colours: drawings, digits and scans have a left and a right."""
    return set(prepared.summary["modes"]) <= {"1", "L", "I;16", "I"}


def _shape(request: Request, *, short: int, images: int, gpu: bool) -> Encoder:
    """The encoder as asked, or small, with fixed sine-cosine positions (they learn faster, arXiv:2205.01580)."""
    if request.model is not None:
        asked = named_encoder(request.model)
        own_size = short <= SMALL and "@" not in request.model
        return _of_size(
            asked, request.image_size or (divisible_size(short, asked.stride) if own_size else asked.image_size)
        )
    natural = 2 * short if short <= 12 else short if short <= SMALL else 224 if gpu else 128
    size = request.image_size or natural
    patch = next((p for p in (16, 8, 7, 4, 2) if size >= p * (7 if gpu else 4)), 1)
    if request.image_size is None:
        size = divisible_size(size, patch)
    encoder = "192x12" if gpu else "64x4" if images < 5_000 and size <= SMALL else "96x4" if size <= SMALL else "128x6"
    return _of_size(vit(f"{encoder}/{patch}", position=SinCos2d()), size)


def _of_size(encoder: Encoder, size: int | tuple[int, int]) -> Encoder:
    try:
        return replace(encoder, image_size=size)
    except InputError:
        nearest = divisible_size(size, encoder.stride) if isinstance(size, int) else size
        raise InputError(
            f"--image-size {size} does not divide into patches of {encoder.stride}; take {nearest}"
        ) from None


def _peak(encoder: Encoder) -> float:
    """Peak learning rate of AdamW: for a ViT it falls with the width; for a ResNet Table 3 has 1e-3."""
    return 0.2 / encoder.width if isinstance(encoder, ViTConfig) else 1e-3


def _workers(prepared: Prepared, world: World) -> int:
    """Reader processes: none for pixels in memory, few on a CPU that also trains."""
    if "array" in prepared.summary["formats"] and world.device.type == "cpu":
        return 0
    return max(idle_cores() - world.threads, 0) if world.device.type == "cpu" else max(min(cores() - 1, 12), 1)


def _in_faster_precision(run: Run, prepared: Prepared, world: World) -> tuple[Run, float]:
    """`run` and the seconds of its steps; in bfloat16 where the CPU multiplies matrices in it and that is felt."""
    step_s = _seconds_per_step(run, prepared, world)
    if world.device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        shorter_s = _seconds_per_step(run, prepared, world.with_precision("bfloat16"))
        if shorter_s < CLEARLY * step_s:
            return replace(run, precision="bfloat16"), shorter_s
    return run, step_s


def _seconds_per_step(run: Run, prepared: Prepared, world: World) -> float:
    """Time of one training step of `run`, reading included, from a few of them; nothing is kept."""
    trainee = Trainee(replace(run, weights=None), world, num_classes=len(prepared.classes))
    batches = trainee.batches(prepared.train, first_step=0, steps=50, num_workers=run.num_workers)
    began = step = 0
    for step in range(50):
        float(trainee.take(step, batches).numbers[0, 0])
        if step == 0:
            began = time.monotonic()  # readers have started, and caches are warm
        elif time.monotonic() - began > PROBE_S:
            break
    return (time.monotonic() - began) / step
