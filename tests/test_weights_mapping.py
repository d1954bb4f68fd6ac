import pytest
import torch

from references import randomise, same_tensors, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.weights import dino, google, huggingface, timm_tensors, torchvision
from vitreous.weights.mapping import (
    check,
    instantiate,
    inverse,
    join_parts,
    joined,
    rename,
    shape,
    split_parts,
    with_axes,
)

X = torch.zeros(1)


def test_a_rule_renames_a_module_and_keeps_its_block_number():
    rules = (("encoder.blocks.*.mlp.up", "blocks.*.mlp.fc1"),)
    assert list(rename({"encoder.blocks.11.mlp.up.bias": X}, rules)) == ["blocks.11.mlp.fc1.bias"]


def test_a_rule_matches_whole_words_only():
    assert list(rename({"norm_pre.weight": X, "norm.weight": X}, (("norm", "x"),))) == [
        "norm_pre.weight",
        "x.weight",
    ]


@pytest.mark.parametrize(
    "rules",
    [
        timm_tensors.RULES,
        (*timm_tensors.EVA_GATES, *timm_tensors.EVA_RULES, *timm_tensors.RULES),
        (*timm_tensors.PARALLEL_RULES, *timm_tensors.RULES),
        (*timm_tensors.HYBRID_RULES, *timm_tensors.RULES),
        (*timm_tensors.ROOT_RULES, *timm_tensors.RULES),
        timm_tensors.RESNET_RULES,
        google.RULES,
        google.BIT_RULES,
        huggingface.RULES,
        huggingface.BEFORE_5,
        (*huggingface.HYBRID_RULES, *huggingface.RULES),
        torchvision.RULES,
        torchvision.OLD_RULES,
        dino.V2_GATES,
        dino.V3_GATES,
    ],
)
def test_every_rule_can_be_undone(rules):
    hold = []
    for left, right in rules:
        if all(left != ours and right != theirs for ours, theirs in hold):  # where two share a name, the first holds
            hold.append((left, right))
    ours = [left.replace("*", "7") + ".weight" for left, _ in hold]
    back = rename(rename(dict.fromkeys(ours, X), rules), inverse(rules))
    assert back.keys() == set(ours)


def test_the_first_rule_that_fits_wins():
    assert list(rename({"a.b.c": X}, (("a.b", "first"), ("a", "second")))) == ["first.c"]


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


def test_tensors_that_belong_together_are_joined_or_said_not_to():
    assert torch.equal(joined({"a": torch.zeros(1, 2), "b": torch.ones(2, 2)})[:, 0], torch.tensor([0.0, 1, 1]))
    for other in (torch.zeros(2, 3), torch.zeros(2), torch.tensor(0.0)):
        with pytest.raises(InputError, match=r"^a is 1 x 2, b is .*, but these belong together; fetch"):
            joined({"a": torch.zeros(1, 2), "b": other})


def test_a_tensor_with_too_few_axes_is_named():
    assert with_axes({"a": X}, "a", 1) is X
    with pytest.raises(InputError, match=r"^a is 1, but has 3 axes; fetch"):
        with_axes({"a": X}, "a", 3)


def test_a_shape_is_written_as_people_write_it():
    assert [shape(torch.zeros(sizes)) for sizes in ((2, 3, 4), (5,), ())] == ["2 x 3 x 4", "5", "scalar"]


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(
        InputError, match=r"^b\.x and a\.x are the same part of a model; keep the one that was trained$"
    ):
        rename({"b.x": X, "a.x": X}, (("a", "b"),))


@pytest.mark.parametrize("kinds", [("weight", "bias"), ("weight",), ()])
def test_parts_are_joined_and_split_again(kinds):
    tensors = {f"m.{part}.{kind}": torch.randn(2, 3) for kind in kinds for part in ("query", "key")}
    together = dict(tensors)
    join_parts(together, "m", parts=("query", "key"), layer="both")
    assert together.keys() == {f"m.both.{kind}" for kind in kinds}
    split_parts(together, "m", layer="both", parts=("query", "key"))
    assert same_tensors(together, tensors)


def test_a_part_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"^m\.key\.weight is missing; fetch the weights again$"):
        join_parts({"m.query.weight": X}, "m", parts=("query", "key"), layer="both")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(number):
    config = ClassifierConfig(encoder=tiny())
    tensors = config.build().state_dict()
    tensors["head.linear.bias"][7] = number
    with pytest.raises(InputError, match=r"^head\.linear\.bias holds numbers that are not finite"):
        instantiate(config, tensors)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_whole_numbers_are_no_weights(dtype):
    config = ClassifierConfig(encoder=tiny())
    tensors = config.build().state_dict()
    tensors["head.linear.weight"] = tensors["head.linear.weight"].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"^head\.linear\.weight holds numbers of {kind}, no weights"):
        instantiate(config, tensors)
