import json
import math
from dataclasses import dataclass

import pytest

from references import tiny
from vitreous.classifier import ClassifierConfig
from vitreous.config import Config, check_ranges, from_dict
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.pooling import Mean
from vitreous.position import RoPE2d


def test_a_tree_of_configs_survives_json():
    config = ClassifierConfig(encoder=tiny(position=RoPE2d(base=7.0), layer_scale=0.1), pooling=Mean(), num_classes=3)
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "name", ["os.system", "", "vitreous.position.nothing", "vitreous.vit.ViT", "vitreous.config.from_dict"]
)
def test_a_file_can_name_no_class_but_our_configs(name):
    with pytest.raises(InputError, match="no config of vitreous"):
        from_dict({"class": name})


def test_an_unknown_field_is_an_error_that_offers_the_nearest():
    with pytest.raises(InputError, match="no field 'num_head'; did you mean num_heads"):
        from_dict({**tiny().to_dict(), "num_head": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "vitreous.nowhere.Thing"}, "no config of vitreous"),
        ({"class": "vitreous.__main__.Thing"}, "no config of vitreous"),
        ({"class": "vitreous.position.Position"}, "no config of vitreous"),
        ({"class": None}, "no config of vitreous"),
        ({"depth": "six"}, "depth is 'six'"),
        ({"depth": True}, "depth is True"),
        ({"depth": None}, "depth is None"),
        ({"layer_scale": "x"}, "layer_scale is 'x'"),
        ({"class_token": 1}, "class_token is 1"),
        ({"position": 3}, "position is 3"),
        ({"position": GELU().to_dict()}, "position is GELU"),
    ],
)
def test_a_file_edited_by_hand_is_answered_in_one_line(change, message):
    with pytest.raises(InputError, match=message):
        from_dict({**tiny().to_dict(), **change})


@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_what_is_no_object_is_no_config(value):
    with pytest.raises(InputError, match="no config of vitreous"):
        from_dict(value)


def test_whole_numbers_are_numbers():
    assert from_dict({**tiny().to_dict(), "layer_scale": 1}).layer_scale == 1


def test_ranges_are_checked_and_named():
    @dataclass(frozen=True, kw_only=True)
    class Lamp(Config):
        light: float | None = 0.5
        colours: tuple[float, ...] = (0.1, 0.2)
        age: int = 0

        def __post_init__(self):
            check_ranges(self, light=(0, 1), colours=(0, 1), age=(0, math.inf))

    assert Lamp(light=None, age=10**9).light is None
    for changes, message in [
        ({"light": 2}, "light is 2; it must lie between 0 and 1"),
        ({"light": math.nan}, "light is nan"),
        ({"light": -math.inf}, "light is -inf"),
        ({"colours": (0.5, 1.5)}, "colours is 1.5"),
        ({"age": -1}, "age is -1; it must be 0 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            Lamp(**changes)
