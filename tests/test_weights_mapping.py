import pytest
import torch

from references import randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.weights.mapping import check, instantiate, inverse, rename
from vitreous.weights.timm import ROTARY_RULES, RULES

X = torch.zeros(1)


def test_a_rule_renames_a_module_and_keeps_its_block_number():
    rules = (("encoder.blocks.*.mlp.up", "blocks.*.mlp.fc1"),)
    assert list(rename({"encoder.blocks.11.mlp.up.bias": X}, rules)) == ["blocks.11.mlp.fc1.bias"]


def test_a_rule_matches_whole_words_only():
    assert list(rename({"norm_pre.weight": X, "norm.weight": X}, (("norm", "x"),))) == [
        "norm_pre.weight",
        "x.weight",
    ]


@pytest.mark.parametrize("rules", [RULES, ROTARY_RULES])
def test_every_rule_can_be_undone(rules):
    ours = [left.replace("*", "7") + ".weight" for left, _ in rules]
    assert list(rename(rename(dict.fromkeys(ours, X), rules), inverse(rules))) == list(dict.fromkeys(ours))


def test_what_does_not_fit_is_said_in_one_line_with_examples_and_counts():
    needed = {"a": torch.zeros(2, 3), **{f"m{i}": X for i in range(5)}}
    with pytest.raises(InputError) as error:
        check({"a": torch.zeros(3, 2), "z": X}, needed, model="B/16")
    message = str(error.value)
    assert "\n" not in message
    assert "5 missing (m0, m1, m2 and 2 more)" in message
    assert "1 unexpected (z)" in message
    assert "a is 3 x 2, not 2 x 3" in message


def test_an_instance_has_the_tensors_and_trains():
    config = ClassifierConfig(encoder=tiny(), num_classes=3)
    tensors = randomise(config.build(), seed=5).state_dict()
    classifier = instantiate(config, dict(tensors))
    assert not classifier.training
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in classifier.state_dict().items())
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in classifier.parameters())
