import pytest

from known_features import QUIET
from vitreous.errors import InputError
from vitreous.evaluation.base import Outcome
from vitreous.evaluation.few_shot import FewShot
from vitreous.evaluation.knn import KNN
from vitreous.suite import carry_out, evaluation_names, suite


def test_names_are_read_however_they_are_written():
    assert evaluation_names("few-shot, KNN,classification,knn") == ["few_shot", "knn", "classification"]


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(InputError, match=r"there is no evaluation 'fewshot'; did you mean few-shot\?"):
        evaluation_names("fewshot")
    with pytest.raises(InputError, match="there is no evaluation ''; choose one of classification, few-shot"):
        evaluation_names("")


def test_settings_are_changed_by_their_names():
    chosen = suite({"few_shot.shots": "1,5", "few_shot.num_seeds": "2"}, names=["few_shot", "knn"]).chosen(
        ["classification", "few_shot", "knn"]
    )
    assert chosen == {"few_shot": FewShot(shots=(1, 5), num_seeds=2), "knn": KNN()}


def test_a_setting_of_what_is_not_carried_out_is_refused():
    with pytest.raises(InputError, match=r"--knn.ks changes knn, which is not carried out; add it to --with"):
        suite({"knn.ks": "5"}, names=["few_shot"])
    with pytest.raises(InputError, match=r"no field 'few_shot.shot'"):
        suite({"few_shot.shot": "5"}, names=["few_shot"])


def test_outcomes_come_one_by_one_with_their_time():
    class Answer:
        def __init__(self, number):
            self.number = number

        def run(self, model, data, *, console):
            if self.number is None:
                raise InputError("no more")
            return Outcome([("x", "1", "")], {"number": self.number}, [])

    going = carry_out({"a": Answer(1), "b": Answer(None)}, None, None, console=QUIET)  # pyright: ignore
    name, outcome = next(going)
    assert name == "a"
    assert outcome.figures["number"] == 1
    assert outcome.figures["seconds"] >= 0
    with pytest.raises(InputError, match="no more"):
        next(going)
