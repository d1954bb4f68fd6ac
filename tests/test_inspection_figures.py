"""Figures: the artists hold the numbers, the axes say what they are."""

import importlib.util
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from example_inspection import example_gallery, example_model, example_pictures
from vitreous.errors import InputError
from vitreous.inspection.checkpoint import inspect_checkpoint
from vitreous.inspection.distance import grid_distances
from vitreous.inspection.figures import figure_files, figures
from vitreous.inspection.findings import Inspection

pytest.importorskip("matplotlib")
PICTURES = example_pictures(12)
NAMES = {
    *("distance", "entropy", "norms", "positions", "filters", "rollout", "features", "lens", "explanations"),
    *("faithfulness", "layout", "neighbours", "attention-layer-0", "attention-layer-1"),
}


@pytest.fixture(scope="module")
def seen() -> Inspection:
    return inspect_checkpoint(example_model(), PICTURES, layers=None, gallery=example_gallery(PICTURES))


@pytest.fixture(scope="module")
def drawn(seen):
    return dict(figures(seen))


def test_every_figure_is_a_pdf_and_a_png(seen):
    files = figure_files(seen)
    assert set(files) == {f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png")}
    assert all(data.startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG") for name, data in files.items())
    assert min(map(len, files.values())) > 4000
    alone = replace(
        seen, **{field.name: None for field in fields(seen) if field.default is None and field.name != "distance"}
    )
    assert figure_files(alone)["distance.pdf"] == files["distance.pdf"]  # no date in it


def test_only_what_was_looked_at_is_drawn(seen):
    alone = replace(seen, **{name: None for name in ("distance", "norms", "lens", "explanations", "attention")})
    assert {name for name, _ in figures(alone)} == {
        *("positions", "filters", "rollout", "features", "layout", "neighbours"),
    }


@pytest.mark.parametrize(
    ("name", "field", "label"),
    [("distance", "distance", "mean attention distance (px)"), ("entropy", "entropy", "mean attention entropy (nats)")],
)
def test_dots_are_heads_and_the_line_is_their_mean(name, field, label, drawn, seen):
    (axes,) = drawn[name].axes
    values = getattr(seen.distance, field)
    dots = axes.collections[0].get_offsets()
    np.testing.assert_allclose(dots[:, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(dots[:, 1], values.flatten())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), values.mean(dim=1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", label)
    assert axes.get_ylim()[0] == 0


def test_dashed_lines_are_attention_that_is_the_same_everywhere(drawn):
    distance, entropy = (drawn[name].axes[0].lines[1].get_ydata()[0] for name in ("distance", "entropy"))
    assert distance == pytest.approx(grid_distances((4, 4), patch_size=8).mean().item())
    assert entropy == pytest.approx(np.log(17))


def test_norms_are_drawn_on_a_logarithmic_axis(drawn, seen):
    above, below = drawn["norms"].axes
    np.testing.assert_allclose(above.lines[0].get_ydata(), seen.norms.largest)
    np.testing.assert_allclose(above.lines[1].get_ydata(), seen.norms.median)
    assert above.get_yscale() == "log"
    np.testing.assert_allclose([bar.get_height() for bar in below.patches], 100 * seen.norms.share)
    assert below.get_ylabel() == "high-norm tokens (%)"


def test_each_tile_is_a_patch_against_all(drawn, seen):
    image = drawn["positions"].axes[0].images[0]
    mosaic = image.get_array().filled(np.nan)
    np.testing.assert_allclose(mosaic[10:14, 5:9], seen.positions[2, 1])
    assert np.isnan(mosaic[4]).all()  # between tiles
    assert image.get_clim() == (-1, 1)
    assert drawn["positions"].axes[1].get_ylabel() == "cosine similarity"


def test_filters_are_the_components(drawn, seen):
    shown = [axes for axes in drawn["filters"].axes if axes.images]
    assert len(shown) == 28
    np.testing.assert_allclose(shown[3].images[0].get_array(), seen.filters.images[3], atol=1e-6)


def test_attention_has_an_image_a_row_and_a_head_a_column(drawn, seen):
    axes = np.array(drawn["attention-layer-1"].axes).reshape(6, 5)
    np.testing.assert_array_equal(axes[2, 0].images[0].get_array(), np.asarray(seen.shown(seen.mapped[2])))
    np.testing.assert_allclose(axes[2, 3].images[0].get_array(), seen.attention[1, 2, 2])
    assert axes[0, 3].get_title() == "head 2"
    assert axes[2, 3].images[0].get_clim()[1] == pytest.approx(np.percentile(seen.attention[1, 2, 2], 98))


def test_rollout_leaves_the_brightest_patch_as_it_is():
    one = inspect_checkpoint(example_model(), PICTURES[:1], only=["rollout"])
    map_ = torch.zeros(1, 4, 4)
    map_[0, :2] = 0.125
    above, below = (axes.images[0].get_array() for axes in dict(figures(replace(one, rollout=map_)))["rollout"].axes)
    np.testing.assert_allclose(below[:8], above[:8] / 255, atol=1e-6)
    np.testing.assert_allclose(below[-8:], 0, atol=1e-6)


def test_curves_are_the_mean_over_images_and_carry_their_areas(drawn, seen):
    deletion, insertion = drawn["faithfulness"].axes
    for line, (name, explained) in zip(deletion.lines, seen.explanations.items(), strict=True):
        tested = explained.faithfulness
        np.testing.assert_allclose(line.get_xdata(), tested.steps)
        np.testing.assert_allclose(line.get_ydata(), tested.deletion.mean(dim=0))
        assert line.get_label() == f"{name}, area {tested.deletion_area.mean():.2f}"
    assert "higher is better" in insertion.get_title()
    axes = np.array(drawn["explanations"].axes).reshape(6, 5)
    tested = seen.explanations["occlusion"].faithfulness
    assert axes[4, 4].get_xlabel() == f"del {tested.deletion_area[4]:.2f}  ins {tested.insertion_area[4]:.2f}"


def test_the_lens_shows_the_predicted_class_and_names_the_first_tokens_best(drawn, seen):
    axes = np.array(drawn["lens"].axes).reshape(6, 3)
    np.testing.assert_allclose(axes[1, 2].images[0].get_array().flatten(), seen.lens.predicted[1, 1, 1:])
    best = seen.classes[seen.lens.classes[1, 1, 0, 0]]
    assert axes[1, 2].get_xlabel() == f"{best} {seen.lens.probability[1, 1, 0, 0]:.0%}"


def test_every_image_is_laid_out_in_its_place(drawn, seen):
    boxes = [artist for artist in drawn["layout"].axes[0].get_children() if type(artist).__name__ == "AnnotationBbox"]
    np.testing.assert_allclose([box.xy for box in boxes], seen.layout, rtol=1e-6)


def test_neighbours_are_named_with_their_cosine(drawn, seen):
    axes = np.array(drawn["neighbours"].axes).reshape(6, 6)
    label, cosine = seen.neighbours.labels[3][1], seen.neighbours.similarity[3, 1]
    assert axes[3, 2].get_xlabel() == f"{label} {cosine:.2f}"
    np.testing.assert_array_equal(axes[3, 2].images[0].get_array(), seen.neighbours.pixels[3, 1].permute(1, 2, 0))


def test_without_matplotlib_the_message_names_the_extra(seen, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vitreous\[plot\]"):
        figure_files(seen)
