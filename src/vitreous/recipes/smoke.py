"""The smallest run that is real: handwritten digits, seconds on a laptop."""

from vitreous.data.prepare import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.optim import AdamW
from vitreous.schedule import Cosine
from vitreous.training import Run
from vitreous.variants import vit


def smoke() -> Run:
    """A ViT of 64 x 4 on scikit-learn's digits (8 x 8 pixels, 10 classes).

    Command: vitreous train smoke. Expected: about 95 % on the held-out fifth after 600 steps, half a minute on
    two CPU cores. It checks an installation; `vitreous fit digits` trains longer and reaches more.
    """
    return Run(
        data=DataConfig(path="digits"),
        train_view=TrainView(image_size=8, min_area=1.0, flip=False, shift=0.125),
        eval_view=EvalView(image_size=8, crop_ratio=1.0),
        model=vit("64x4/2", image_size=8),
        optimizer=AdamW(weight_decay=0.05),
        learning_rate=Cosine(peak=1e-3),
        steps=600,
    )
