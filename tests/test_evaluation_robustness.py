from dataclasses import replace

import numpy as np
import pytest
import torch

from references import randomise, tiny
from vitreous import distributed
from vitreous.classifier import ClassifierConfig
from vitreous.console import Console
from vitreous.data.source import ArraySource
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.evaluation.base import Labelled
from vitreous.evaluation.features import Frozen
from vitreous.evaluation.few_shot import design, ridge, signs
from vitreous.evaluation.robustness import PatchDrop, PatchShuffle, Resolution, _shuffled, readout
from vitreous.pooling import Mean
from vitreous.resnet import ResNetConfig
from vitreous.seeding import generator

QUIET, VIEW = Console(quiet=True), EvalView(image_size=32, crop_ratio=1.0)


def images(count, *, seed, classes=("a", "b", "c")):
    labels = np.arange(count) % 3
    pixels = np.random.default_rng(seed).integers(0, 120, (count, 32, 32, 3))
    pixels[np.arange(count), :, :, labels] += 60
    return ArraySource(pixels.astype(np.uint8), prefix=f"s{seed}", classes=classes, labels=labels)


DATA = Labelled(images(30, seed=0), images(21, seed=1))


def frozen(*, classes=("c", "x", "a", "b"), config=None):
    config = config or ClassifierConfig(encoder=tiny(), num_classes=4)
    return Frozen(randomise(config.build()), VIEW, world=distributed.start(device="cpu", threads=1), classes=classes)


def pixels_of(source):
    return VIEW.normalise(torch.stack([VIEW(source.image(i)) for i in range(len(source))]))


def top1(logits, labels):
    return (np.asarray(logits).argmax(1) == labels).mean()


def test_the_head_chooses_among_the_datas_classes_alone():
    model = frozen()
    said, scores = readout(model, DATA)
    with torch.inference_mode():
        logits = model.classifier(pixels_of(DATA.test))[:, [2, 3, 0]]
    np.testing.assert_allclose(scores(model.pooled(DATA.test).values), logits, atol=1e-5)
    assert said == "the model's head"


def test_without_the_classes_a_readout_is_fitted_in_closed_form():
    model = frozen(classes=None)
    said, scores = readout(model, DATA)
    x, z = design(*(torch.from_numpy(model.pooled(part).values).double() for part in (DATA.train, DATA.test)))
    (weights,) = ridge(x, signs(torch.from_numpy(DATA.train.labels), num_classes=3), penalties=[1024.0])
    np.testing.assert_allclose(scores(model.pooled(DATA.test).values), z @ weights)
    assert said == "least squares on 30 training images"


@pytest.mark.parametrize("classes", [("a", "b"), None])
def test_images_to_learn_from_are_needed_only_where_the_head_does_not_know_the_classes(classes):
    assert Resolution().learns(frozen(), ("a", "b", "c")) is False
    assert Resolution().learns(frozen(classes=classes), ("a", "b", "c")) is True


def test_other_sizes_are_the_model_at_these_sizes():
    model = frozen()
    curve = Resolution(ratios=(0.4, 1.0, 2.0)).run(model, DATA, console=QUIET).figures["curve"]
    assert [point["height"] for point in curve] == [16, 32, 64]
    assert [point["tokens"] for point in curve] == [5, 17, 65]
    for point in curve:
        view = replace(VIEW, image_size=point["height"])
        pixels = view.normalise(torch.stack([view(DATA.test.image(i)) for i in range(21)]))
        with torch.inference_mode():
            assert point["top1"]["value"] == top1(model.classifier(pixels)[:, [2, 3, 0]], DATA.test.labels)


def test_none_dropped_is_the_model_as_it_is():
    model = frozen()
    curve = PatchDrop(drop_ratios=(0.0, 0.5, 0.99)).run(model, DATA, console=QUIET).figures["curve"]
    assert [point["kept"] for point in curve] == [16, 8, 1]
    with torch.inference_mode():
        whole = model.classifier(pixels_of(DATA.test))[:, [2, 3, 0]]
    assert curve[0]["top1"]["value"] == top1(whole, DATA.test.labels)


def test_dropped_patches_are_never_seen_and_are_others_in_every_image():
    """Noise in place of any dropped patch changes nothing; in place of a kept one it does."""
    model = frozen()
    (change,) = PatchDrop(drop_ratios=(0.5,)).changes(model)
    pixels = DATA.test.pixels.copy()
    dropped = [
        set(range(16)) - set(generator(0, "patch-drop", i).permutation(16)[:8].tolist()) for i in range(len(DATA.test))
    ]
    for i, patches in enumerate(dropped):
        for patch in patches:
            row, column = divmod(patch, 4)
            pixels[i, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255 - 7 * patch
    noisy = ArraySource(pixels, prefix="n", classes=DATA.test.classes, labels=DATA.test.labels)
    np.testing.assert_allclose(change.features(noisy).values, change.features(DATA.test).values, atol=1e-5)
    assert not np.allclose(model.pooled(noisy).values, model.pooled(DATA.test).values, atol=1e-2)
    assert len(set(map(frozenset, dropped))) > 15


def test_patches_are_counted_at_the_size_of_the_view():
    model = frozen().seen_by(replace(VIEW, image_size=48))
    assert PatchDrop(drop_ratios=(0.5,)).changes(model)[0].figures["kept"] == 18


def test_what_is_dropped_depends_on_the_seed_and_the_image_alone():
    def features(seed, source):
        model = frozen()
        (change,) = PatchDrop(drop_ratios=(0.5,), seed=seed).changes(model)
        return change.features(source).values

    whole = features(0, DATA.test)
    model = frozen()
    model.batch_size = 5
    (change,) = PatchDrop(drop_ratios=(0.5,)).changes(model)
    np.testing.assert_allclose(change.features(DATA.test).values, whole, atol=1e-5)
    assert not np.allclose(features(1, DATA.test), whole, atol=1e-2)


def test_cells_come_from_where_the_order_says():
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    moved = _shuffled(picture, torch.tensor([[3, 1, 2, 0]]), cells=2)
    expected = [[10, 11, 2, 3], [14, 15, 6, 7], [8, 9, 0, 1], [12, 13, 4, 5]]
    assert moved[0, 0].tolist() == expected
    assert torch.equal(_shuffled(picture, torch.tensor([[0, 1, 2, 3]]), cells=2), picture)


def test_shuffling_one_cell_changes_nothing_and_patches_do_not_matter_without_positions():
    from vitreous.position import NoPosition

    config = ClassifierConfig(encoder=tiny(position=NoPosition()), pooling=Mean(), num_classes=4)
    model = frozen(config=config)
    curve = PatchShuffle(grids=(1, 4, 5)).run(model, DATA, console=QUIET).figures["curve"]
    assert [point["cells"] for point in curve] == [1, 4]  # 5 does not divide 32
    assert curve[0]["top1"] == curve[1]["top1"]
    one, four = (change.features(DATA.test).values for change in PatchShuffle(grids=(1, 4)).changes(model))
    np.testing.assert_allclose(one, four, atol=1e-5)  # cells are whole patches


def test_a_resnet_has_no_patches_to_drop_but_the_rest_works():
    config = ClassifierConfig(encoder=ResNetConfig(units=(1, 1), image_size=32), pooling=Mean(), num_classes=4)
    model = frozen(config=config)
    with pytest.raises(InputError, match="patch-drop needs a ViT, not ResNet"):
        PatchDrop().run(model, DATA, console=QUIET)
    assert len(Resolution(ratios=(1.0, 2.0)).run(model, DATA, console=QUIET).figures["curve"]) == 2


def test_grids_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="none of the grids"):
        PatchShuffle(grids=(5,)).run(frozen(), DATA, console=QUIET)
