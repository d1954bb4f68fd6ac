"""The smallest run that is real: handwritten digits, half a minute on a laptop."""

from vitreous.data.data_config import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.optim import AdamW
from vitreous.position import SinCos2d
from vitreous.run import Run
from vitreous.schedule import Cosine
from vitreous.variants import vit


def smoke() -> Run:
    """ViT 64x4/4 on scikit-learn's digits, enlarged from 8 pixels to 16.

    Source: none; it checks an installation. `vitreous fit digits` trains longer and reaches more.
    Command: vitreous train smoke
    Expected: 94.2 %; ours, on the held-out fifth.
    Cost: half a minute on 2 CPU cores; ours.
    """
    return Run(
        data=DataConfig(path="digits"),
        train_view=TrainView(image_size=16, min_area_ratio=0.6, shift_ratio=0.1, rotate=10.0, flip=False),
        eval_view=EvalView(image_size=16, crop_ratio=1.0),
        model=vit("64x4/4", image_size=16, position=SinCos2d()),
        optimizer=AdamW(weight_decay=0.5, betas=(0.9, 0.95)),
        learning_rate=Cosine(peak=3e-3),
        steps=600,
    )
