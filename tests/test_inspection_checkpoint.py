"""One inspection of a small model: every part is what its function gives on the same images."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from example_inspection import CLASSES, example_gallery, example_model, example_pictures
from vitreous.classifier import ClassifierConfig
from vitreous.data.decode import BadImage
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.inspection.attention import attention_maps
from vitreous.inspection.checkpoint import inspect_checkpoint
from vitreous.inspection.distance import attention_statistics
from vitreous.inspection.findings import Inspection
from vitreous.inspection.look import PARTS, WITH_IMAGES, WITHOUT_IMAGES, evenly
from vitreous.inspection.norms import token_norms
from vitreous.inspection.positions import position_similarity
from vitreous.inspection.relevance import relevance
from vitreous.inspection.rollout import rollout
from vitreous.pooling import Mean
from vitreous.position import RoPE2d
from vitreous.predict import Model
from vitreous.resnet import ResNetConfig

PICTURES = example_pictures(12)


@pytest.fixture(scope="module")
def model() -> Model:
    return example_model(num_registers=1)


@pytest.fixture(scope="module")
def seen(model) -> Inspection:
    return inspect_checkpoint(
        model, PICTURES, name="tiny", layers=None, gallery=example_gallery(PICTURES), batch_size=5
    )


def test_every_part_is_looked_at(seen):
    assert seen.left_out == {}
    assert all(getattr(seen, part) is not None for part in PARTS)
    assert (seen.name, seen.grid, seen.prefix) == ("tiny", (4, 4), ("class token", "register 1"))
    assert (seen.layers, seen.heads) == ((0, 1), (0, 1, 2, 3))


def test_parts_are_what_their_functions_give(seen, model):
    images = model.view.normalise(seen.pixels)
    mapped = images[list(seen.mapped)]
    assert_close(seen.attention, attention_maps(model.module, mapped, layers=(0, 1)))
    assert_close(seen.rollout, rollout(model.module, mapped))
    assert_close(seen.positions, position_similarity(model.module))
    assert_close(seen.explanations["relevance"].maps, relevance(model.module, mapped))
    expected = attention_statistics(model.module, [images])
    assert_close(seen.distance.distance, expected.distance)
    assert_close(seen.distance.entropy, expected.entropy)
    assert seen.distance.num_images == 12
    assert_close(seen.norms.median, token_norms(model.module, [images]).median)


def test_the_maps_are_of_six_images_at_even_distances(seen):
    assert seen.mapped == (0, 2, 4, 7, 9, 11)
    assert seen.files[7] == "image 7"
    assert seen.rollout.shape == (6, 4, 4)
    torch.testing.assert_close(seen.pixels[7], example_model().pixels(PICTURES[7]), rtol=0, atol=0)


def test_the_lens_ends_in_what_the_model_says(seen):
    for i, file in enumerate(seen.mapped):
        said = seen.predictions[file]
        assert seen.classes[seen.lens.classes[-1, i, 0, 0]] == said.label
        assert seen.lens.probability[-1, i, 0, 0].item() == pytest.approx(said.score, abs=1e-5)
        assert seen.lens.predicted[-1, i, 0].item() == pytest.approx(said.score, abs=1e-5)


def test_an_image_that_is_in_the_gallery_is_its_own_nearest(seen):
    assert_close(seen.neighbours.similarity[:, 0], torch.ones(6))
    assert [files[0] for files in seen.neighbours.files] == [example_gallery(PICTURES).name(i) for i in seen.mapped]
    assert [labels[0] for labels in seen.neighbours.labels] == [CLASSES[i % 3] for i in seen.mapped]
    assert torch.equal(seen.neighbours.pixels[:, 0], seen.pixels[list(seen.mapped)])


def test_parameters_by_part_are_all_parameters(seen, model):
    assert sum(seen.parameters.values()) == sum(p.numel() for p in model.module.parameters())
    assert seen.parameters["prefix"] == 2 * 32


def test_numbers_survive_json_to_six_digits(seen):
    back = json.loads(json.dumps(seen.numbers()))
    assert back["classes"] == list(CLASSES)
    assert_close(torch.tensor(back["attention"]), seen.attention, rtol=1e-5, atol=1e-9)
    assert_close(torch.tensor(back["distance"]["distance"]), seen.distance.distance, rtol=1e-5, atol=0)
    assert set(PARTS) <= set(back)
    assert "pixels" not in back


def test_the_table_says_lowest_mean_and_highest_of_a_layer(seen):
    head, first, _ = seen.rows()
    assert head[:5] == ("layer", "distance, px", "lowest", "highest", "entropy, nats")
    pixels = seen.distance.distance[0]
    assert first[1:4] == tuple(f"{v:.1f}" for v in (pixels.mean(), pixels.min(), pixels.max()))
    assert seen.by_layer()[1]["high_norm_share"] == seen.norms.share[1].item()


def test_without_images_only_what_needs_none_is_looked_at(model):
    seen = inspect_checkpoint(model)
    assert set(seen.left_out) == set(WITH_IMAGES)
    assert all(getattr(seen, part) is not None for part in WITHOUT_IMAGES)
    assert "give files or folders" in seen.left_out["distance"]
    assert seen.rows()[0] == ("part", "parameters")


def test_a_part_by_itself(model):
    seen = inspect_checkpoint(model, PICTURES[:2], only=["rollout"])
    assert [part for part in PARTS if getattr(seen, part) is not None] == ["rollout"]
    assert seen.left_out == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["distances"]}, "did you mean distance"),
        ({"only": ["neighbours"]}, "--gallery"),
        ({"only": ["layout"]}, "needs 10 images, got 2"),
        ({"layers": [2]}, "no layers \\[2\\] in a model of 2; give 0 to 1"),
        ({"heads": [-5]}, "no heads \\[-5\\] in a layer of 4; give 0 to 3"),
        ({"max_images": 0}, "at least 1 image"),
        ({"batch_size": 0}, "at least 1 image"),
    ],
)
def test_what_cannot_be_had_is_an_error_where_it_was_asked_for(options, message, model):
    with pytest.raises(InputError, match=message):
        inspect_checkpoint(model, PICTURES[:2], **options)


def test_a_file_that_is_no_image_is_named(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"text")
    with pytest.raises(BadImage, match=r"x\.png: not an image"):
        inspect_checkpoint(model, [tmp_path / "x.png"])


def test_positions_that_are_no_vectors_are_left_out_with_the_reason():
    seen = inspect_checkpoint(example_model(position=RoPE2d()))
    assert seen.positions is None
    assert "RoPE2d" in seen.left_out["positions"]


def test_an_encoder_alone_has_maps_but_no_classes():
    seen = inspect_checkpoint(example_model(headless=True), PICTURES[:2])
    assert seen.classes == seen.predictions == ()
    assert {"lens", "explanations"} <= set(seen.left_out)
    assert seen.rollout is not None


def test_a_resnet_is_refused():
    config = ClassifierConfig(encoder=ResNetConfig(units=(1,), image_size=32), pooling=Mean(), num_classes=3)
    resnet = Model(config.build(), view=EvalView(image_size=32), classes=CLASSES, device="cpu")
    with pytest.raises(InputError, match="takes a ViT whose tokens all attend to each other, not BiT"):
        inspect_checkpoint(resnet, PICTURES[:1])


def test_other_image_sizes_and_patches_too_few_for_28_filters():
    narrow = example_model(width=8, num_heads=2, image_size=(32, 48), class_token=False, num_registers=1)
    seen = inspect_checkpoint(narrow, PICTURES[:1])
    assert seen.grid == (4, 6)
    assert seen.filters.images.shape[0] == 7
    assert seen.attention.shape == (1, 1, 2, 4, 6)


@pytest.mark.parametrize(
    ("number", "most", "expected"), [(0, 6, []), (3, 6, [0, 1, 2]), (9, 3, [0, 4, 8]), (5, 1, [0])]
)
def test_even_distances_by_hand(number, most, expected):
    assert evenly(number, most) == expected


def test_it_shows_in_a_notebook(seen):
    shown = seen._repr_html_()
    assert shown.count("<img") == 12
    assert "tiny: ViT 32x2/8" in shown
    assert f"{sum(seen.parameters.values()):,} parameters" in shown
    assert math.isfinite(seen.norms.largest.sum())


def test_a_model_shows_in_a_notebook_what_it_is(model):
    shown = example_model(classes=("<b>", *(str(i) for i in range(9))))._repr_html_()
    assert "<td>ViT 32x2/8</td>" in shown
    assert "&lt;b&gt;, 0, 1, 2, 3, 4, 5, 6 and 2 more" in shown
    assert f"{sum(p.numel() for p in model.module.parameters()):,}" in model._repr_html_()
    assert "an encoder alone" in example_model(headless=True)._repr_html_()
