"""Commands about models themselves: models, budget, convert."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from vitreous.cli.app import TrainedModel, Whole, app, print_json
from vitreous.errors import InputError, did_you_mean
from vitreous.tables import table

DIFFERENT = 1
"""Exit code of a conversion that is read back as another function."""
MOST = 1e15
"""Of anything that is counted here."""


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
    from vitreous.console import Console
    from vitreous.variants import PUBLISHED, encoder, timm_name

    part = pattern.lower()
    exact = [name for name in PUBLISHED if name == pattern]  # g is not G
    exact = exact or [name for name in PUBLISHED if name.lower() == part]
    named = [(name, timm_name(encoder(name)) or "") for name in exact or PUBLISHED]
    found = [(name, other) for name, other in named if part in f"vit-{name}".lower() or part in other]
    if not found:
        raise InputError(f"no model matches {pattern!r}{did_you_mean(pattern, PUBLISHED)}")
    rows = []
    watched = sys.stderr is not None and sys.stderr.isatty()
    with Console(quiet=not watched).task("model", len(found)) as task:
        for name, other in found:
            rows.append((name, other, cost(plain_classifier(encoder(name)))))
            task.update(len(rows))
    if json:
        print_json([{"name": name, "timm": other or None, **vars(spent)} for name, other, spent in rows])
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
    batch_size: Whole | None = None,
    classes: Whole = 1000,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    optimizer: Literal["adamw", "sgd"] = "adamw",
    memory: float | None = None,
    tflops: float | None = None,
    devices: Whole = 1,
    gpus: Annotated[tuple[Whole, ...] | None, Parameter(consume_multiple=True)] = None,
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
        Images a step on each device, 32 by default; with --gpus on all of them together, 4,096 by default.
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
    gpus
        How many GPUs train together, such as 8 64 512: memory, time and traffic of a step, checkpoints, failures.
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
    given |= {"gpus": min(gpus)} if gpus else {}
    for option, value in given.items():
        if value is not None and not 1 / MOST <= value <= MOST:
            raise InputError(f"--{option} must be more than 0 and at most {MOST:g}, got {value:g}")
    if gpus and (images is not None or devices != 1):
        raise InputError("--gpus says what a step costs; leave out --images and --devices, which are about a run")
    if tflops is not None and images is None and not gpus:
        raise InputError("--tflops says how long a run takes; say with --images how long the run is")
    config = plain_classifier(encoder(model, **({"image_size": image_size} if image_size else {})), num_classes=classes)
    chosen = {"adamw": AdamW(), "sgd": SGD()}[optimizer]
    if gpus:
        from vitreous.cli.many_gpus import figures, page
        from vitreous.scaling import Cluster, work

        needs = work(config, optimizer=chosen, dtype=getattr(torch, precision))
        peak, share = (Cluster.peak, Cluster.utilisation) if tflops is None else (tflops * 1e12, 1.0)
        held = Cluster.memory if memory is None else memory * 2**30
        clusters = [Cluster(gpus=number, memory=held, peak=peak, utilisation=share) for number in gpus]
        if json:
            print_json({"name": model, **figures(needs, clusters, batch_size=batch_size or 4096)})
        else:
            print(f"{title(config.encoder)}, {config.encoder.pixels}, {classes:,} classes")
            print(page(needs, clusters, batch_size=batch_size or 4096))
        return 0
    batch_size = batch_size or 32
    spent, held = cost(config), step_memory(config, optimizer=chosen.build, dtype=getattr(torch, precision))
    largest = None if memory is None else held.largest_batch(memory * 2**30)
    exaflops = None if images is None else training_exaflops(spent, images=images, epochs=epochs)
    days = None if exaflops is None or tflops is None else exaflops * 1e6 / (tflops * devices) / 86_400
    if json:
        step = {**vars(held), "batch_size": batch_size, "total": held.total(batch_size), "largest_batch": largest}
        print_json({"name": model, **vars(spent), "memory": step, "exaflops": exaflops, "days": days})
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
def convert(
    source: TrainedModel,
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
    destination
        A folder, which also gets the preprocessing and class names; or one file, .safetensors or .npz.
    to
        vitreous, timm, hf (transformers), torchvision, or google (the paper's .npz).
    verify
        Read what was written, and compare the logits of both on random images; exit code 1 if they differ.
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
        facts |= {**vars(agreement), "holds": agreement.holds}
    code = 0 if facts.get("holds", True) else DIFFERENT
    if json:
        print_json(facts)
        return code
    print(f"{facts['model']} written as {to}: {destination}")
    if verify:
        print(
            f"logits differ by {facts['difference']:.2g} at most, of {facts['largest']:.3g}; "
            f"the same class for {facts['same_class']} of {facts['images']} random images"
        )
        if code:
            print("what is read back is ANOTHER FUNCTION: convert to a folder, or to another layout")
    return code
