"""Small data sets from scratch, for one GPU or a CPU, and a small ViT fine-tuned on one of them.

Names: the data alone, or `fine_tune_MODEL_DATA`. From no paper: fixed sine-cosine positions and the mean of the patches
as in `plain_s16_in1k_90ep`, strong augmentation where there are passes enough to need it.
"""

from dataclasses import replace

from vitreous.data.augment import RandAugment
from vitreous.data.data_config import DataConfig
from vitreous.data.mixing import Mixing
from vitreous.data.views import EvalView, TrainView
from vitreous.objectives.supervised import Supervised
from vitreous.optim import SGD, AdamW
from vitreous.pooling import Mean
from vitreous.position import SinCos2d
from vitreous.recipes.smoke import smoke
from vitreous.run import Run
from vitreous.schedule import Cosine
from vitreous.variants import vit


def digits() -> Run:
    """ViT 64x4/4 on scikit-learn's digits, enlarged to 16 pixels.

    Source: none; the longer form of smoke.
    Command: vitreous train digits
    Expected: 97.8 %; ours, on the held-out fifth, the mean of three seeds (96.6 to 99.0).
    Cost: 4 min on a CPU core; ours.
    """
    return replace(smoke(), steps=3_000)


def fashion_mnist() -> Run:
    """ViT 192x6/4 on Fashion-MNIST, 100 epochs.

    Source: none; `from_scratch` is the form for a CPU.
    Command: vitreous train fashion_mnist --data.path fashion-mnist:FOLDER
    Expected: not measured yet.
    Cost: not measured yet; one GPU, 0.005 exaFLOPs (vitreous budget).
    """
    return Run(
        data=DataConfig(path="fashion-mnist:fashion-mnist"),
        train_view=TrainView(image_size=28, min_area_ratio=1.0, shift_ratio=0.08, erase=0.25),
        eval_view=EvalView(image_size=28, crop_ratio=1.0),
        model=vit("192x6/4", image_size=28, class_token=False, position=SinCos2d(), drop_path=0.1),
        objective=Supervised(pooling=Mean(), label_smoothing=0.1, mixing=Mixing(mixup=0.2)),
        optimizer=AdamW(weight_decay=0.1, betas=(0.9, 0.95)),
        learning_rate=Cosine(peak=1e-3, warmup_ratio=0.05),
        batch_size=256,
        steps=100 * 60_000 // 256,
    )


def cifar10() -> Run:
    """ViT 192x9/4 on CIFAR-10, 200 epochs.

    Source: none; the shape of others' small ViTs (arXiv:2104.05704), the recipe of a plain one (arXiv:2205.01580).
    Command: vitreous train cifar10 --data.path cifar10:FOLDER
    Expected: not measured yet.
    Cost: not measured yet; one GPU, 0.016 exaFLOPs (vitreous budget).
    """
    return Run(
        data=DataConfig(path="cifar10:cifar10"),
        train_view=TrainView(
            image_size=32,
            min_area_ratio=1.0,
            shift_ratio=0.125,
            augment=RandAugment(num_ops=2, magnitude=10),
            erase=0.25,
        ),
        eval_view=EvalView(image_size=32, crop_ratio=1.0),
        model=vit("192x9/4", image_size=32, class_token=False, position=SinCos2d(), drop_path=0.1),
        objective=Supervised(pooling=Mean(), label_smoothing=0.1, mixing=Mixing(mixup=0.8, cutmix=1.0)),
        optimizer=AdamW(weight_decay=0.1),
        learning_rate=Cosine(peak=1e-3, warmup_ratio=0.05),
        batch_size=128,
        steps=200 * 50_000 // 128,
    )


def cifar10_cpu() -> Run:
    """ViT 128x6/4 on CIFAR-10, 10 epochs.

    Source: none; `cifar10` for as long as a CPU can be waited for, hence with little augmentation.
    Command: vitreous train cifar10_cpu --data.path cifar10:FOLDER
    Expected: 65.1 %; ours, on the 10,000 test images, one seed in bfloat16 (64.2 to 66.1), from JPEG copies.
    Cost: 52 min on a CPU core that multiplies in bfloat16 (AMX); ours; 0.00025 exaFLOPs (vitreous budget).
    """
    return Run(
        data=DataConfig(path="cifar10:cifar10"),
        train_view=TrainView(image_size=32, min_area_ratio=1.0, shift_ratio=0.125),
        eval_view=EvalView(image_size=32, crop_ratio=1.0),
        model=vit("128x6/4", image_size=32, class_token=False, position=SinCos2d()),
        objective=Supervised(pooling=Mean(), label_smoothing=0.1),
        optimizer=AdamW(weight_decay=0.1, betas=(0.9, 0.95)),
        learning_rate=Cosine(peak=2e-3),
        batch_size=64,
        steps=10 * 50_000 // 64,
    )


def fine_tune_ti16_cifar10() -> Run:
    """ViT-Ti/16 on CIFAR-10, fine-tuned at 224 pixels.

    Source: arXiv:2010.11929, Table 4; but for the size of the images and the number of steps.
    Command: vitreous train fine_tune_ti16_cifar10 --data.path cifar10:FOLDER
    Expected: not measured yet.
    Cost: not measured yet; one GPU, 0.0039 exaFLOPs (vitreous budget).
    """
    return Run(
        data=DataConfig(path="cifar10:cifar10"),
        train_view=TrainView(image_size=224, min_area_ratio=0.35),
        eval_view=EvalView(image_size=224, crop_ratio=1.0),
        model=vit("Ti/16"),
        weights="timm:vit_tiny_patch16_224.augreg_in21k",
        optimizer=SGD(),
        learning_rate=Cosine(peak=0.01, warmup_ratio=0.1),
        batch_size=512,
        steps=1_000,
    )
