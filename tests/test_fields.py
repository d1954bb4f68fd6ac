from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import pytest

from vitreous.classifier import ClassifierConfig
from vitreous.config import Config
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.fields import concrete, override, walk
from vitreous.pooling import Pooling
from vitreous.position import Learned, SinCos2d
from vitreous.schedule import Decay


@dataclass(frozen=True, kw_only=True)
class Shape(Config):
    """Abstract, as families are."""

    @abstractmethod
    def area(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    radius: float = 1.0
    """From the centre."""

    def area(self) -> float:
        return 3.14 * self.radius**2


@dataclass(frozen=True, kw_only=True)
class Drawing(Config):
    shape: Shape = Circle()
    """What is drawn."""
    colour: Literal["red", "blue"] = "red"
    """Its colour,
    on two lines."""
    border: float | None = None
    """Width of the border."""
    corners: tuple[int, ...] = (1, 2)
    """Any number of them."""
    size: tuple[float, float] = (1.0, 2.0)
    """Exactly two."""
    filled: bool = False
    """Whether it is."""
    title: str = ""
    """Above it."""


def test_the_variants_of_a_family_are_its_concrete_classes():
    assert concrete(Shape) == {"Circle": Circle}
    assert "Decay" not in concrete(Decay)


def test_walking_visits_every_field_with_its_sentence():
    fields = {field.path: field for field in walk(Drawing())}
    assert list(fields) == ["shape", "shape.radius", "colour", "border", "corners", "size", "filled", "title"]
    assert fields["shape"].value == "Circle"
    assert fields["shape.radius"].doc == "From the centre."
    assert fields["colour"].doc == "Its colour, on two lines."


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("colour", "blue", "blue"),
        ("border", "2.5", 2.5),
        ("border", "none", None),
        ("corners", "3", (3,)),
        ("corners", "(3, 4, 5)", (3, 4, 5)),
        ("size", "1,2.5", (1.0, 2.5)),
        ("filled", "Yes", True),
        ("title", "none", "none"),
        ("shape", "circle", Circle()),
    ],
)
def test_text_is_read_by_the_type_of_the_field(path, text, value):
    assert getattr(override(Drawing(), {path: text}), path) == value


def test_a_nested_field_changes_and_its_neighbours_do_not():
    changed = override(ClassifierConfig(), {"encoder.position.class_token_slot": "false"})
    assert changed.encoder.position == Learned(class_token_slot=False)
    assert override(changed, {"encoder.position.class_token_slot": "true"}) == ClassifierConfig()


def test_changes_take_effect_together():
    config = ClassifierConfig()
    changed = override(config, {"encoder.patch_size": "7", "encoder.image_size": "28"})
    assert override(config, {"encoder.image_size": "28", "encoder.patch_size": "7"}) == changed
    both = {"encoder.position": "Learned", "encoder.position.class_token_slot": "false"}
    assert override(config, both) == override(config, dict(reversed(both.items())))


def test_a_variant_is_chosen_by_its_name_whatever_the_case():
    assert override(ClassifierConfig(), {"encoder.position": "sincos2d"}).encoder.position == SinCos2d()
    assert override(ClassifierConfig(), {"encoder.feed_forward": "GELU"}).encoder.feed_forward == GELU()
    assert override(ClassifierConfig(), {"pooling": "Mean"}).pooling in [cls() for cls in concrete(Pooling).values()]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("color", "red", "no field 'color'.*did you mean colour"),
        ("shape.radios", "1", r"no field 'shape.radios'.*did you mean shape.radius"),
        ("title.x", "1", "title is '', which has no field 'x'"),
        ("colour", "bleu", "did you mean blue"),
        ("border", "wide", "takes a number, got 'wide'"),
        ("corners", "1,2.5", "takes a whole number, got '2.5'"),
        ("size", "1", "takes 2 numbers"),
        ("filled", "perhaps", "is a switch"),
        ("shape", "Square", "cannot be 'Square'.*Circle"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(path, text, message):
    with pytest.raises(InputError, match=message) as error:
        override(Drawing(), {path: text})
    assert "\n" not in str(error.value)


def test_a_value_that_the_config_refuses_is_refused():
    with pytest.raises(InputError, match="num_heads 5 does not divide"):
        override(ClassifierConfig(), {"encoder.num_heads": "5"})
