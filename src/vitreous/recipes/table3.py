"""What the paper's recipes of pre-training share (arXiv:2010.11929, Table 3), and their authors' later ones.

A recipe's name is the model, then the data, then what tells it from another: `r50_b16_jft` is the hybrid R50+B/16 on
JFT-300M, `vit_l16_in21k_30ep` the shorter of two runs. Before it stands what is not Table 3: `augreg_`, `fine_tune_`.
"""

from dataclasses import dataclass, replace

from vitreous.data.data_config import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.feed_forward import GELU
from vitreous.head import LinearHead
from vitreous.objectives.supervised import Supervised
from vitreous.optim import AdamW
from vitreous.pooling import ClassToken, Mean
from vitreous.resnet import ResNetConfig
from vitreous.run import Run
from vitreous.schedule import Cosine, Decay, Linear
from vitreous.variants import encoder, vit

BATCH_SIZE = 4096
WARMUP_STEPS = 10_000
TRAIN_VIEW = TrainView(image_size=224, interpolation="bilinear", min_area_ratio=0.05)
EVAL_VIEW = EvalView(image_size=224, interpolation="bilinear", crop_ratio=224 / 256)
TANH = GELU(tanh=True)
SIGMOID_BIAS = -10.0
"""A class starts at a probability of 1 in 22,000; both sets have about as many classes."""


@dataclass(frozen=True)
class Corpus:
    """Images to pre-train on, and what Table 3 sets for all models that do."""

    data: DataConfig
    images: int
    """To train on."""
    decay: Decay
    """How the learning rate falls."""
    weight_decay: float
    dropout: float
    clip_norm: float | None
    sigmoid: bool
    """Whether an image may be of several classes."""


JFT = Corpus(
    DataConfig(path="jft300m", holdout_ratio=0.0001),
    images=303_000_000,
    decay=Linear(end=1e-5),
    weight_decay=0.1,
    dropout=0.0,
    clip_norm=None,
    sigmoid=True,
)
IMAGENET21K = Corpus(
    DataConfig(path="imagenet21k", holdout_ratio=0.0036),
    images=14_197_122,
    decay=Linear(end=1e-5),
    weight_decay=0.03,
    dropout=0.1,
    clip_norm=None,
    sigmoid=True,
)
IMAGENET = Corpus(
    DataConfig(path="imagenet"),
    images=1_281_167,
    decay=Cosine(),
    weight_decay=0.3,
    dropout=0.1,
    clip_norm=1.0,
    sigmoid=False,
)


def num_steps(images: int, *, epochs: int, batch_size: int = BATCH_SIZE) -> int:
    """Whole batches in so many passes over the images."""
    return epochs * images // batch_size


def pre_trained(model: str, corpus: Corpus, *, epochs: int, rate: float) -> Run:
    """A row of Table 3: Adam with decoupled decay, 10,000 steps of warm-up, batches of 4,096 images of 224 pixels.

    A ViT and a hybrid have dropout and a tanh layer before the scores, a ResNet has neither.
    """
    shape = encoder(model)
    plain = isinstance(shape, ResNetConfig)
    if not plain:
        shape = vit(model, dropout=corpus.dropout, feed_forward=TANH)
    steps = num_steps(corpus.images, epochs=epochs)
    return Run(
        data=corpus.data,
        train_view=TRAIN_VIEW,
        eval_view=EVAL_VIEW,
        model=shape,
        objective=Supervised(
            pooling=Mean() if plain else ClassToken(),
            head=LinearHead(
                representation=None if plain else shape.features, bias=SIGMOID_BIAS if corpus.sigmoid else 0.0
            ),
            loss="sigmoid" if corpus.sigmoid else "softmax",
        ),
        optimizer=AdamW(weight_decay=corpus.weight_decay, clip_norm=corpus.clip_norm),
        learning_rate=replace(corpus.decay, peak=rate, warmup_ratio=WARMUP_STEPS / steps),
        batch_size=BATCH_SIZE,
        steps=steps,
    )
