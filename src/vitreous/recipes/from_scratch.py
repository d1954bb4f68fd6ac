"""Training a small ViT from scratch on data of the user's, for want of pre-trained weights."""

from vitreous.data.prepare import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.optim import AdamW
from vitreous.schedule import Cosine
from vitreous.training import Run
from vitreous.variants import vit


def from_scratch() -> Run:
    """A ViT of 192 x 6 on the CIFAR-10 layout: Adam, warm-up and cosine as in the paper's Table 3, scaled down.

    Command: vitreous train from_scratch --data.path cifar10:FOLDER. On few images a ViT learns little without
    augmentation, so images are shifted, flipped and altered at random (TrivialAugment, arXiv:2103.10158).
    """
    return Run(
        data=DataConfig(path="cifar10:cifar10"),
        train_view=TrainView(image_size=32, min_area=1.0, flip=True, shift=0.125, trivial_augment=True),
        eval_view=EvalView(image_size=32, crop_ratio=1.0),
        model=vit("192x6/4", image_size=32, drop_path=0.05),
        optimizer=AdamW(weight_decay=0.05),
        learning_rate=Cosine(peak=1e-3, warmup_ratio=0.1),
        batch_size=128,
        steps=20_000,
    )
