import gc
import os
import weakref
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
from vitreous.evaluation import feature_store
from vitreous.evaluation import features as module
from vitreous.evaluation.classify import probabilities
from vitreous.evaluation.features import Frozen, joined

VIEW = EvalView(image_size=32, crop_ratio=1.0)


def images(count=10, *, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    return ArraySource(pixels, prefix="made", classes=("a", "b"), labels=np.arange(count) % 2)


@pytest.fixture
def counted(monkeypatch):
    """How many images each batch that is really computed holds."""
    batches = []
    real = module.evaluation_batches

    def counting(source, view, **options):
        for batch in real(source, view, **options):
            batches.append(len(batch.index))
            yield batch

    monkeypatch.setattr(module, "evaluation_batches", counting)
    return batches


def frozen(cache=None, *, seed=0, view=VIEW, console=None):
    classifier = randomise(ClassifierConfig(encoder=tiny(), num_classes=2).build(), seed=seed)
    world = distributed.start(device="cpu", threads=1)
    return Frozen(classifier, view, world=world, cache=cache, batch_size=4, console=console)


def test_features_are_what_the_head_sees_and_patches_what_the_encoder_returns():
    model, source = frozen(), images()
    pixels = VIEW.normalise(torch.stack([VIEW(source.image(i)) for i in range(10)]))
    with torch.inference_mode():
        tokens = model.classifier.encoder(pixels)
        np.testing.assert_allclose(model.pooled(source).values, model.classifier.features(pixels), atol=1e-5)
        np.testing.assert_allclose(model.patches(source).values, tokens.patches, rtol=2e-3, atol=1e-3)
    assert model.patches(source).values.shape == (10, 16, 32)
    assert model.pooled(source).labels.tolist() == [0, 1] * 5


def test_with_mirror_images_probabilities_are_the_mean_of_both(tmp_path):
    model, source = frozen(tmp_path), images()
    seen = VIEW.normalise(torch.stack([VIEW(source.image(i)) for i in range(10)]))
    with torch.no_grad():
        both = [model.classifier(shown).softmax(-1) for shown in (seen, seen.flip(-1))]
    assert not torch.allclose(both[0], both[1])
    np.testing.assert_allclose(model.probabilities(source, mirrored=True), sum(both) / 2, atol=1e-6)


def test_probabilities_are_the_heads_answer_to_what_was_computed_before(tmp_path, counted):
    model, source = frozen(tmp_path), images()
    model.pooled(source)
    found = frozen(tmp_path).probabilities(source)
    assert sum(counted) == 10
    expected = probabilities(model.classifier, source, VIEW, world=model.world)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_equal_work_is_done_once_whoever_asks(tmp_path, counted):
    source = images()
    first = frozen(tmp_path).pooled(source).values
    assert sum(counted) == 10
    again = frozen(tmp_path)
    assert np.array_equal(again.pooled(images()).values, first)
    assert again.pooled(source) is again.pooled(source)
    assert sum(counted) == 10


@pytest.mark.parametrize("other", ["weights", "view", "image", "order", "kind"])
def test_other_work_is_done_anew(other, tmp_path, counted):
    frozen(tmp_path).pooled(images())
    before = sum(counted)
    view = replace(VIEW, crop_ratio=0.9) if other == "view" else VIEW
    model = frozen(tmp_path, seed=int(other == "weights"), view=view)
    source = images(seed=int(other == "image")).select(np.arange(10)[:: -1 if other == "order" else 1])
    (model.patches if other == "kind" else model.pooled)(source)
    assert sum(counted) == 2 * before


@pytest.mark.parametrize("change", ["num_heads", "norm_eps", "shape of raw pixels"])
def test_equal_tensors_of_another_function_are_other_work(change, tmp_path):
    def found(config, source):
        torch.manual_seed(0)
        classifier = randomise(ClassifierConfig(encoder=config, num_classes=2).build())
        world = distributed.start(device="cpu", threads=1)
        return Frozen(classifier, VIEW, world=world, cache=tmp_path).pooled(source).values

    raw = np.random.default_rng(0).integers(0, 256, 4 * 40 * 40 * 3, dtype=np.uint8)
    shapes = [(4, 40, 40, 3), (4, 20, 80, 3)] if change == "shape of raw pixels" else [(4, 40, 40, 3)] * 2
    sources = [ArraySource(raw.reshape(s), prefix="x", classes=("a",), labels=np.zeros(4)) for s in shapes]
    configs = [tiny(), tiny(**{"num_heads": {"num_heads": 2}, "norm_eps": {"norm_eps": 0.1}}.get(change, {}))]
    first, second = (found(config, source) for config, source in zip(configs, sources))
    assert not np.allclose(first, second, atol=1e-3)


def test_features_go_with_the_images_they_are_of():
    model, source = frozen(), images()
    model.pooled(source)
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None
    assert len(model._known) == 0


def test_tokens_too_large_for_half_precision_are_named():
    model = frozen()
    model.classifier.encoder.norm.weight.data.fill_(1e6)
    assert np.isfinite(model.pooled(images()).values).all()
    with pytest.raises(InputError, match="too large for half precision"):
        model.patches(images())


def test_a_stopped_command_loses_a_chunk_at_most(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(module, "CHUNK", 4)
    model, seen = frozen(tmp_path), []

    def stopping(pixels, index):
        seen.extend(index.tolist())
        if len(seen) > 8:
            raise KeyboardInterrupt
        return model.classifier.features(pixels)

    with pytest.raises(KeyboardInterrupt):
        model.changed(images(), "pooled", stopping)
    counted.clear()
    whole = frozen(tmp_path).pooled(images()).values
    assert counted == [2]
    monkeypatch.setattr(module, "CHUNK", 1024)
    np.testing.assert_allclose(whole, frozen().pooled(images()).values, atol=1e-6)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_an_entry_that_changed_on_the_disk_is_computed_again(damage, tmp_path, counted):
    expected = frozen(tmp_path).pooled(images()).values
    (entry,) = tmp_path.glob("*/*.npy")
    data = bytearray(entry.read_bytes())
    data[200] ^= 1
    entry.write_bytes({"flip": bytes(data), "cut": bytes(data[:300]), "empty": b""}[damage])
    assert np.array_equal(frozen(tmp_path).pooled(images()).values, expected)
    assert sum(counted) == 20


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = frozen(tmp_path / "file", console=Console()).pooled(images()).values
    assert len(found) == 10
    assert "warning: features are not kept" in capsys.readouterr().err


def test_positions_count_where_a_change_may_depend_on_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    pixels = np.zeros((8, 40, 40, 3), np.uint8)
    same = ArraySource(pixels, prefix="same", classes=("a",), labels=np.zeros(8))

    def by_position(images, index):
        return torch.from_numpy(index)[:, None].float()

    found = frozen(tmp_path).changed(same, "numbered", by_position).values
    assert found[:, 0].tolist() == list(range(8))
    assert len(list(tmp_path.glob("*/*.npy"))) == 2


def test_a_model_that_gives_no_numbers_is_refused():
    model = frozen()
    model.classifier.encoder.prefix.data.fill_(float("nan"))
    with pytest.raises(InputError, match="its weights are broken"):
        model.pooled(images())


def test_features_of_two_sets_are_joined_in_order():
    model = frozen()
    both = joined(model.pooled(images()), model.pooled(images(4, seed=1)))
    assert len(both.labels) == 14
    assert np.array_equal(both.values[10:], model.pooled(images(4, seed=1)).values)


def test_features_are_kept_among_the_caches_of_vitreous(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "VITREOUS_CACHE", str(tmp_path))
    assert feature_store.feature_cache() == tmp_path / "features"
