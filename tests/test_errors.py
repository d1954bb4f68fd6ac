from vitreous.errors import InputError, did_you_mean


def test_near_names_are_offered_whatever_their_case():
    assert did_you_mean("b/61", ["B/16", "L/16", "resnet"]) == "; did you mean B/16?"


def test_at_most_as_many_as_asked():
    assert did_you_mean("ab", ["abc", "abd", "abe"], most=2).count(" or ") == 1


def test_far_names_are_answered_with_all():
    assert did_you_mean("qqq", ["red", "blue"]) == "; choose one of red, blue"


def test_no_choices_no_advice():
    assert did_you_mean("qqq", []) == ""


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
