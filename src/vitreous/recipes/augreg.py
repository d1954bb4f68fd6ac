"""Published checkpoints of "How to train your ViT?" (AugReg, arXiv:2106.10270), by the settings in their names.

Names: `augreg_MODEL_DATA`. On ImageNet-21k the checkpoints that the authors recommend; on ImageNet alone those that
timm has. Files call light0 and light1 what paper and code call light1 and light2 (inferred: seven names of either, in
order). The function `augreg` makes any other cell of their grid. From their code: on ImageNet-21k a sigmoid for each
class, which starts at a bias of -10; the tanh form of GELU.

Unlike theirs: Adam's averages are all in float32; filters of a resize look at every pixel. Accuracies are after
fine-tuning, see `fine_tune_b16_in1k`.
"""

from dataclasses import replace

from vitreous.data.augment import BigVisionRandAugment
from vitreous.data.mixing import Mixing
from vitreous.head import LinearHead
from vitreous.objectives.supervised import Supervised
from vitreous.optim import AdamW
from vitreous.recipes.table3 import (
    BATCH_SIZE,
    EVAL_VIEW,
    IMAGENET,
    IMAGENET21K,
    SIGMOID_BIAS,
    TANH,
    TRAIN_VIEW,
    WARMUP_STEPS,
    Corpus,
    num_steps,
)
from vitreous.run import Run
from vitreous.schedule import Cosine
from vitreous.variants import vit

PRESETS: dict[str, tuple[float, BigVisionRandAugment | None]] = {
    "none": (0.0, None),
    "light1": (0.0, BigVisionRandAugment(num_ops=2, level=0)),
    "light2": (0.2, BigVisionRandAugment(num_ops=2, level=10)),
    "medium1": (0.2, BigVisionRandAugment(num_ops=2, level=15)),
    "medium2": (0.5, BigVisionRandAugment(num_ops=2, level=15)),
    "strong1": (0.5, BigVisionRandAugment(num_ops=2, level=20)),
    "strong2": (0.8, BigVisionRandAugment(num_ops=2, level=20)),
}
"""Mixup and RandAugment (Sec. 3.4)."""


def augreg(
    model: str, corpus: Corpus, *, preset: str, weight_decay: float, regularisation: float = 0.0, epochs: int = 300
) -> Run:
    """A cell of the grid: `regularisation` is both dropout and the largest rate of dropped branches.

    Adam with decoupled decay, peak 0.001, cosine, 10,000 steps of warm-up, clipped at 1, batches of 4,096 images of 224
    pixels; no tanh layer before the scores (Sec. 3.3).
    """
    mixup, rand_augment = PRESETS[preset]
    steps = num_steps(corpus.images, epochs=epochs)
    return Run(
        data=corpus.data,
        train_view=replace(TRAIN_VIEW, augment=rand_augment),
        eval_view=EVAL_VIEW,
        model=vit(model, dropout=regularisation, drop_path=regularisation, feed_forward=TANH),
        objective=Supervised(
            head=LinearHead(bias=SIGMOID_BIAS if corpus.sigmoid else 0.0),
            loss="sigmoid" if corpus.sigmoid else "softmax",
            mixing=Mixing(mixup=mixup),
        ),
        optimizer=AdamW(weight_decay=weight_decay),
        learning_rate=Cosine(peak=1e-3, warmup_ratio=WARMUP_STEPS / steps),
        batch_size=BATCH_SIZE,
        steps=steps,
    )


def augreg_ti16_in21k() -> Run:
    """ViT-Ti/16 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_ti16_in21k --data.path FOLDER
    Expected: ImageNet 78.22 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 2.8 h on 8 GPUs; 32.0 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("Ti/16", IMAGENET21K, preset="none", weight_decay=0.03)


def augreg_s32_in21k() -> Run:
    """ViT-S/32 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_s32_in21k --data.path FOLDER
    Expected: ImageNet 79.58 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 2.5 h on 8 GPUs; 29.2 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("S/32", IMAGENET21K, preset="none", weight_decay=0.1)


def augreg_s16_in21k() -> Run:
    """ViT-S/16 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_s16_in21k --data.path FOLDER
    Expected: ImageNet 83.73 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 10 h on 8 GPUs; 117.5 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("S/16", IMAGENET21K, preset="light2", weight_decay=0.03)


def augreg_b32_in21k() -> Run:
    """ViT-B/32 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_b32_in21k --data.path FOLDER
    Expected: ImageNet 83.59 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 10 h on 8 GPUs; 112.7 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("B/32", IMAGENET21K, preset="light2", weight_decay=0.1)


def augreg_b16_in21k() -> Run:
    """ViT-B/16 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_b16_in21k --data.path FOLDER
    Expected: ImageNet 85.49 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 39 h on 8 GPUs; 448.8 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("B/16", IMAGENET21K, preset="medium1", weight_decay=0.1)


def augreg_l16_in21k() -> Run:
    """ViT-L/16 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_l16_in21k --data.path FOLDER
    Expected: ImageNet 85.59 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 137 h on 8 GPUs; 1,573 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("L/16", IMAGENET21K, preset="strong1", weight_decay=0.1)


def augreg_r_ti16_in21k() -> Run:
    """R+Ti/16 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_r_ti16_in21k --data.path FOLDER
    Expected: ImageNet 75.40 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 7.7 h on 1 GPU; 11.1 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("R+Ti/16", IMAGENET21K, preset="none", weight_decay=0.03)


def augreg_r26_s32_in21k() -> Run:
    """R26+S/32 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_r26_s32_in21k --data.path FOLDER
    Expected: ImageNet 83.85 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 8 h on 8 GPUs; 88.5 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("R26+S/32", IMAGENET21K, preset="light2", weight_decay=0.1)


def augreg_r50_l32_in21k() -> Run:
    """R50+L/32 on ImageNet-21k, 300 epochs, AugReg.

    Source: arXiv:2106.10270; R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_r50_l32_in21k --data.path FOLDER
    Expected: ImageNet 85.99 %; once fine-tuned at 384 pixels (theirs, README of the code).
    Cost: 43 h on 8 GPUs; 496.1 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("R50+L/32", IMAGENET21K, preset="medium1", weight_decay=0.1, regularisation=0.1)


def augreg_s16_in1k() -> Run:
    """ViT-S/16 on ImageNet, 300 epochs, AugReg.

    Source: arXiv:2106.10270; S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_s16_in1k --data.path FOLDER
    Expected: ImageNet 81.12 %; once fine-tuned at 384 pixels (their weights, measured by timm).
    Cost: 7.4 h on 1 GPU; 10.6 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("S/16", IMAGENET, preset="medium2", weight_decay=0.1)


def augreg_b32_in1k() -> Run:
    """ViT-B/32 on ImageNet, 300 epochs, AugReg.

    Source: arXiv:2106.10270; B_32-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.1-sd_0.1.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_b32_in1k --data.path FOLDER
    Expected: ImageNet 78.75 %; once fine-tuned at 384 pixels (their weights, measured by timm).
    Cost: 7.1 h on 1 GPU; 10.2 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("B/32", IMAGENET, preset="medium2", weight_decay=0.1, regularisation=0.1)


def augreg_b16_in1k() -> Run:
    """ViT-B/16 on ImageNet, 300 epochs, AugReg.

    Source: arXiv:2106.10270; B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1.
    Command: torchrun --nproc-per-node 8 -m vitreous train augreg_b16_in1k --data.path FOLDER
    Expected: ImageNet 81.10 %; once fine-tuned at 384 pixels (their weights, measured by timm).
    Cost: 3.5 h on 8 GPUs; 40.5 exaFLOPs (vitreous budget) at 400 TFLOP/s a GPU.
    """
    return augreg("B/16", IMAGENET, preset="strong2", weight_decay=0.1, regularisation=0.1)
