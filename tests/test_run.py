import json

import pytest

from test_training import tiny
from vitreous.checkpoint import CheckpointConfig
from vitreous.config import from_dict
from vitreous.data.data_config import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.errors import InputError
from vitreous.head import LinearHead
from vitreous.objectives.supervised import Supervised
from vitreous.optim import SGD, AdamW
from vitreous.parallel import FullShard, HybridShard
from vitreous.position import RoPE2d, SinCos2d
from vitreous.schedule import Constant, Cosine
from vitreous.variants import vit


def test_a_run_survives_json():
    run = tiny(objective=Supervised(label_smoothing=0.1), parallel=HybridShard(group_size=4), ema_decay=0.99)
    assert from_dict(run.to_dict()) == run


def test_what_changes_no_result_is_not_of_the_essence():
    free = {
        "num_workers": 3,
        "checkpoint": CheckpointConfig(every_s=1.0, keep_last=5),
        "parallel": FullShard(),
        "activation_checkpointing": True,
    }
    assert tiny(**free).essence() == tiny().essence()
    still = TrainView(image_size=8, margin=0.1)
    assert tiny(train_view=still, cache_gb=2.0).essence() == tiny(train_view=still).essence()
    for name, value in {"seed": 1, "exact": True, "ema_decay": 0.5, "compile": True, "precision": "float64"}.items():
        assert tiny(**{"num_micro_batches": 2, name: value}).essence() != tiny(num_micro_batches=2).essence()
    assert json.loads(json.dumps(tiny().essence())) == tiny().essence()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"steps": 0}, "steps is 0"),
        ({"num_evaluation_images": 0}, "num_evaluation_images is 0"),
        ({"num_evaluations": -1}, "evaluations is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"max_skipped_steps": -1}, "max_skipped_steps is -1"),
        ({"model": vit("32x2/3", image_size=9)}, "train_view.image_size 8: .* take 9"),
        ({"eval_view": EvalView(image_size=12)}, "eval_view.image_size 12 is not model.image_size 8"),
        ({"model": vit("32x2/4", image_size=8, channels=1)}, "model.channels is 1; images have 3"),
        ({"cache_gb": -1}, "cache_gb is -1"),
        ({"cache_gb": 1}, "cache_gb keeps .* but chance says what is resized; give --train_view.margin 0.15, or no"),
        (
            {"cache_gb": 1, "train_view": TrainView(image_size=8, margin=0.1), "grow_from": 0.5},
            "cache_gb keeps images that are resized once, but grow_from resizes them by step; leave one",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(weight_decay=-1), "weight_decay is -1"),
        (lambda: AdamW(clip_norm=0), "clip_norm is 0"),
        (lambda: AdamW(betas=(0.9, 1.0)), "betas is 1.0"),
        (lambda: SGD(momentum=1.5), "momentum is 1.5"),
        (lambda: Cosine(peak=-1), "peak is -1"),
        (lambda: Cosine(warmup_ratio=1.0), "warmup_ratio is 1.0"),
        (lambda: Constant(value=float("inf")), "value is inf"),
        (lambda: Supervised(label_smoothing=2), "label_smoothing is 2"),
        (lambda: vit("32x2/4", depth=0), "depth is 0"),
        (lambda: vit("32x2/4", num_heads=0), "num_heads is 0"),
        (lambda: vit("32x2/4", patch_size=0), "patch_size is 0"),
        (lambda: vit("32x2/4", dropout=1.0), "dropout is 1.0"),
        (lambda: vit("32x2/4", image_size=0), "image_size is 0"),
        (lambda: DataConfig(holdout_ratio=1.0), "holdout_ratio is 1.0"),
        (lambda: vit("32x2/4", layer_scale=float("nan")), "layer_scale is nan"),
        (lambda: LinearHead(representation=0), "representation is 0"),
        (lambda: LinearHead(bias=float("inf")), "bias is inf"),
        (lambda: SinCos2d(temperature=0.0), "temperature is 0.0"),
        (lambda: RoPE2d(base=-1.0), "base is -1.0"),
    ],
)
def test_numbers_out_of_their_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_training_images_grow_by_whole_patches():
    run = tiny(
        train_view=TrainView(image_size=(32, 48)),
        model=vit("32x2/4", image_size=32),
        steps=100,
        grow_from=0.5,
        eval_view=EvalView(image_size=32),
    )
    shapes = [run.shape_at(step) for step in range(100)]
    assert shapes[0] == (16, 24)
    assert set(shapes[80:]) == {(32, 48)}
    assert shapes[40] == (24, 36)
    assert shapes == sorted(shapes)
    assert {side % 4 for shape in shapes for side in shape} == {0}
    assert tiny(steps=10).shape_at(0) == (8, 8)


def test_a_batch_holds_all_views_of_its_images():
    with pytest.raises(
        InputError, match="batch_size 16, with 3 views of each image, cannot be cut into 2 equal parts; "
    ):
        tiny(num_repeats=3, num_micro_batches=2)
