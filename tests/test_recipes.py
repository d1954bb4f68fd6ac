import inspect
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import timm
import torch

from test_budget import PARAMETERS, RESNETS, VITS_AND_HYBRIDS
from vitreous.budget import Cost, cost, plain_classifier, training_exaflops
from vitreous.config import from_dict
from vitreous.feed_forward import GELU
from vitreous.fields import override
from vitreous.initialisation import PaperInitialisation
from vitreous.optim import OptimizerConfig
from vitreous.recipes.augreg import PRESETS
from vitreous.recipes.described import changed, described
from vitreous.recipes.shipped import recipes
from vitreous.resnet import ResNetConfig
from vitreous.run import Run
from vitreous.schedule import Cosine, Decay, Linear
from vitreous.tokens import Encoder
from vitreous.variants import paper_name, timm_name
from vitreous.vit import ViTConfig

RUNS = {name: function() for name, function in recipes().items()}
DESCRIBED = {recipe.name: recipe for recipe in described()}
# Table 3, typed from the paper a second time: epochs, peak of the learning rate.
JFT = {
    "vit_b32_jft": (7, 8e-4),
    "vit_b16_jft": (7, 8e-4),
    "vit_l32_jft": (7, 6e-4),
    "vit_l16_jft_7ep": (7, 4e-4),
    "vit_l16_jft_14ep": (14, 4e-4),
    "vit_h14_jft": (14, 3e-4),
    "r50x1_jft": (7, 1e-3),
    "r50x2_jft": (7, 1e-3),
    "r101x1_jft": (7, 8e-4),
    "r152x1_jft": (7, 6e-4),
    "r152x2_jft": (7, 6e-4),
    "r50_b32_jft": (7, 8e-4),
    "r50_b16_jft": (7, 8e-4),
    "r50_l32_jft": (7, 2e-4),
    "r50_l16_jft_7ep": (7, 4e-4),
    "r50_l16_jft_14ep": (14, 4e-4),
}
IN21K = {
    "vit_b32_in21k": (90, 1e-3),
    "vit_b16_in21k": (90, 1e-3),
    "vit_l32_in21k_30ep": (30, 1e-3),
    "vit_l32_in21k_90ep": (90, 1e-3),
    "vit_l16_in21k_30ep": (30, 1e-3),
    "vit_l16_in21k_90ep": (90, 1e-3),
}
IN1K = {f"vit_{size}_in1k": (300, 3e-3) for size in ("b32", "b16", "l32", "l16")}
# Steps, and steps of warm-up.
LENGTHS = {
    "vit_b16_jft": (517_822, 10_000),
    "vit_h14_jft": (1_035_644, 10_000),
    "vit_b16_in21k": (311_948, 10_000),
    "vit_l16_in21k_30ep": (103_982, 10_000),
    "vit_b16_in1k": (93_835, 10_000),
    "augreg_b16_in21k": (1_039_828, 10_000),
    "augreg_b16_in1k": (93_835, 10_000),
    "plain_s16_in1k_90ep": (112_602, 10_000),
    "plain_s16_in1k_300ep": (375_341, 10_000),
    "deit_b16_in1k": (381_299, 6_355),
    "fine_tune_b16_in1k": (20_000, 500),
    "fine_tune_l16_in1k_512": (20_000, 500),
    "fine_tune_h14_in1k_518": (20_000, 500),
    "fine_tune_b16_cifar10": (10_000, 500),
    "fine_tune_b16_cifar100": (10_000, 500),
    "fine_tune_b16_pets": (500, 100),
    "fine_tune_b16_flowers": (500, 100),
    "fine_tune_l16_vtab": (2_500, 500),
}
UNPUBLISHED = {"R50+B/32", "R50+L/16"}  # whose numbers of parameters nobody has told
PUBLISHED = [
    name for name, run in RUNS.items() if "x" not in paper_name(run.model) and paper_name(run.model) not in UNPUBLISHED
]
TINY = {"--model.depth": 1, "--model.width": 32, "--model.num_heads": 2, "--model.mlp_dim": 32}
TINY |= dict.fromkeys(("--model.image_size", "--train_view.image_size", "--eval_view.image_size"), 32)
TINY |= {"--batch_size": 6, "--steps": 2, "--weights": "none", "--data.path": "photos"}


def schedule(run: Run) -> Decay:
    assert isinstance(run.learning_rate, Decay)
    return run.learning_rate


@cache
def cost_of(model: Encoder) -> Cost:
    return cost(plain_classifier(model))


def spent(model: Encoder) -> Cost:
    if isinstance(model, ViTConfig):  # nothing of which costs anything that is counted
        model = replace(model, dropout=0.0, drop_path=0.0, feed_forward=GELU(), initialisation=PaperInitialisation())
    return cost_of(model)


def parameters(model: Encoder) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in plain_classifier(model).build().parameters())


def exaflops(run: Run) -> float:
    return training_exaflops(spent(run.model), images=run.steps * run.batch_size, epochs=1)


def decayed(config: OptimizerConfig, parameters: dict[str, torch.nn.Parameter]) -> set[str]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {names[id(p)] for group in config.groups(parameters) if group["weight_decay"] for p in group["params"]}


def test_the_list_has_every_recipe_and_its_docstring_without_importing_any():
    assert {name: inspect.getdoc(function) for name, function in recipes().items()} == {
        recipe.name: recipe.text for recipe in described()
    }
    code = "import sys; from vitreous.cli.recipes import recipes; recipes(); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_says_what_it_is_where_from_what_it_reaches_and_costs(name):
    said, run = DESCRIBED[name], RUNS[name]
    assert said.model.removeprefix("ViT").lstrip(" -") == paper_name(run.model)
    assert f"vitreous train {name}" in said.command
    assert all((said.data, said.source, said.expected, said.cost, said.family))


@pytest.mark.parametrize("name", [name for name in RUNS if "exaFLOPs" in DESCRIBED[name].cost])
def test_what_a_recipe_says_it_costs_is_what_the_budget_says(name):
    (text,) = re.findall(r"([\d.,]+) exaFLOPs", DESCRIBED[name].cost)
    said, model = float(text.replace(",", "")), RUNS[name].model
    if isinstance(model, ResNetConfig):
        assert said == {size: exa for size, epochs, exa in RESNETS if epochs == 7}[paper_name(model)]
    else:
        assert said == pytest.approx(exaflops(RUNS[name]), rel=0.03)
    for hours, gpus in re.findall(r"^([\d.]+) h on (\d) GPUs?; .* at 400 TFLOP/s", DESCRIBED[name].cost):
        assert float(hours) == pytest.approx(said * 1e18 / (int(gpus) * 400e12 * 3600), rel=0.07)


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_survives_json(name):
    assert from_dict(json.loads(json.dumps(RUNS[name].to_dict()))) == RUNS[name]


@pytest.mark.parametrize("name", RUNS)
def test_the_fields_that_are_shown_make_the_recipe_on_the_command_line(name):
    shown = {field.path: str(field.value) for field in changed(RUNS[name], Run())}
    assert override(Run(), shown) == RUNS[name]


@pytest.mark.parametrize("name", RUNS)
def test_the_parts_of_a_recipe_go_together(name):
    with torch.device("meta"):
        objective = RUNS[name].objective.build(RUNS[name].model, num_classes=10)
    assert decayed(RUNS[name].optimizer, dict(objective.named_parameters())) or "fine_tune" in name


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_the_published_number_of_parameters(name):
    model = RUNS[name].model
    assert isinstance(model, ViTConfig)
    size = paper_name(model)
    at = "" if model.image_size == 224 else f"@{model.image_size}"
    extra = 0
    if f"{size}{at}" not in PARAMETERS:  # only positions are more at 512 and 518
        extra, at = (model.grid[0] ** 2 - (224 // model.patch_size) ** 2) * model.width, ""
    if not model.class_token:  # vit_jax/models_test.py: S/16-gap-norep; its learned positions are fixed here
        assert parameters(model) == 22_049_896 - 196 * 384
    else:
        assert parameters(model) == PARAMETERS[f"{size}{at}"] + extra


@pytest.mark.parametrize("name", ["r50x1_jft", "r101x1_jft", "r152x2_jft"])
def test_resnets_have_timms_number_of_parameters(name):
    theirs = timm_name(RUNS[name].model)
    assert theirs is not None
    with torch.device("meta"):
        numbers = [parameter.numel() for parameter in timm.create_model(theirs).parameters()]
    assert parameters(RUNS[name].model) == sum(numbers)


@pytest.mark.parametrize("name", [*JFT, *IN21K, *IN1K])
def test_pre_training_is_table_3(name):
    run = RUNS[name]
    epochs, peak = {**JFT, **IN21K, **IN1K}[name]
    images, weight_decay, dropout, clip_norm, decay, end = {
        "jft": (303e6, 0.1, 0.0, None, Linear, 1e-5),
        "in21k": (14_197_122, 0.03, 0.1, None, Linear, 1e-5),
        "in1k": (1_281_167, 0.3, 0.1, 1.0, Cosine, 0.0),
    }[name.split("_")[2 if name.startswith(("vit", "r50_")) else 1]]
    assert run.steps == math.floor(epochs * images / 4096)
    assert run.batch_size == 4096
    assert run.train_view.image_size == 224
    assert (run.optimizer.weight_decay, run.optimizer.clip_norm) == (weight_decay, clip_norm)
    assert not isinstance(run.model, ViTConfig) or run.model.dropout == dropout
    rate, warmup = schedule(run), 10_000 / run.steps
    assert type(rate) is decay
    moments = [rate(moment) for moment in (0.0, warmup / 2, warmup, (1 + warmup) / 2, 1.0)]
    assert moments == pytest.approx([0.0, peak / 2, peak, (peak + end) / 2, end])


def test_every_row_of_table_3_is_there():
    assert {**JFT, **IN21K, **IN1K}.keys() == {name for name in RUNS if re.match(r"(vit|r\d+)_|r\d+x", name)}


@pytest.mark.parametrize("name", LENGTHS)
def test_steps_and_warm_up_are_the_published_ones(name):
    run = RUNS[name]
    assert (run.steps, round(schedule(run).warmup_ratio * run.steps)) == LENGTHS[name]
    assert schedule(run)(schedule(run).warmup_ratio) == pytest.approx(schedule(run).peak)


def test_pre_training_on_jft_takes_the_operations_of_table_6():
    published = {(name, epochs): exa for name, epochs, exa in VITS_AND_HYBRIDS}
    for name, (epochs, _) in JFT.items():
        if not isinstance(RUNS[name].model, ResNetConfig):
            assert exaflops(RUNS[name]) == pytest.approx(published[paper_name(RUNS[name].model), epochs], rel=0.03)


def test_fine_tuning_is_table_4():
    for name, run in RUNS.items():
        if DESCRIBED[name].source == "arXiv:2010.11929, Table 4":
            size = int(name.split("_")[-1]) if name.endswith(("512", "518")) else 384
            assert run.train_view.image_size == run.eval_view.image_size == run.model.image_size == size
            assert run.optimizer.to_dict().items() >= {"momentum": 0.9, "weight_decay": 0.0, "clip_norm": 1.0}.items()
            assert (run.batch_size, run.ema_decay) == (512, None if size == 384 else 0.9999)
            assert type(run.learning_rate) is Cosine


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("augreg_")])
def test_augreg_is_what_the_name_of_its_checkpoint_says(name):
    run, source = RUNS[name], DESCRIBED[name].source
    preset, *numbers = re.findall(r"aug_(\w+)-wd_([\d.]+)-do_([\d.]+)-sd_([\d.]+)$", source)[0]
    renamed = {"light0": "light1", "light1": "light2"}
    mixup, augment = PRESETS[renamed.get(preset, str(preset))]
    assert (run.objective.to_dict()["mixing"]["mixup"], run.train_view.augment) == (mixup, augment)
    assert isinstance(run.model, ViTConfig)
    assert [run.optimizer.weight_decay, run.model.dropout, run.model.drop_path] == [float(text) for text in numbers]
    assert paper_name(run.model).replace("+", "_").replace("/", "_") in source
    assert (schedule(run).peak, run.optimizer.clip_norm) == (1e-3, 1.0)
    assert f"-i{name.rpartition('_in')[2]}-300ep-lr_0.001-" in source


def test_deit_decays_what_timm_decays():
    with torch.device("meta"):
        theirs = timm.create_model("deit_small_patch16_224").named_parameters()
    wanted = [p for name, p in theirs if p.ndim > 1 and name not in ("pos_embed", "cls_token")]
    run = RUNS["deit_s16_in1k"]
    with torch.device("meta"):
        ours = dict(run.objective.build(run.model, num_classes=1000).named_parameters())
    assert sum(ours[name].numel() for name in decayed(run.optimizer, ours)) == sum(p.numel() for p in wanted)


def test_deit_repeats_its_images_in_batches_that_processes_can_share():
    run = RUNS["deit_s16_in1k"]
    assert run.num_repeats == 3
    assert [run.micro_batches(processes) for processes in (1, 2, 4, 8, 16)] == [1, 2, 4, 8, 16]
    assert schedule(run).peak == pytest.approx(1e-3, rel=0.02)  # 0.0005 for 512 images, as in Table 9
    assert run.batch_size == pytest.approx(1024, rel=0.02)


def test_the_paper_decays_kernels_and_nothing_else():
    run = RUNS["vit_b16_in21k"]
    with torch.device("meta"):
        ours = dict(run.objective.build(run.model, num_classes=7).named_parameters())
    left = {name.removeprefix("classifier.") for name in ours.keys() - decayed(run.optimizer, ours)}
    assert {"encoder.prefix", "encoder.position.table", "encoder.position.class_token"} <= left
    assert all(re.search(r"bias$|norm\d?\.weight$|prefix$|position\.", name) for name in left)
    assert {"classifier.encoder.stem.weight", "classifier.head.representation.weight"} <= decayed(run.optimizer, ours)


def test_decay_of_the_plain_vit_does_not_follow_the_peak():
    run = RUNS["plain_s16_in1k_90ep"]
    optimizer = run.optimizer.build({"weight": torch.nn.Parameter(torch.ones(2, 2))})
    rate = schedule(run)
    run.optimizer.set_rate(optimizer, rate, rate.warmup_ratio)
    (group,) = optimizer.param_groups
    assert group["lr"] * group["weight_decay"] == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["vit_b16_in21k", "plain_s16_in1k_90ep", "deit_s16_in1k"])
def test_a_recipe_trains(name, vitreous, photos):
    options = {**TINY, "--data.path": photos, "--num_evaluations": 0}
    answer = vitreous("train", name, *(word for pair in options.items() for word in pair), "--json")
    assert answer.code == 0, answer.err
    assert 0 <= json.loads(answer.out)["top1"]["value"] <= 1


def test_a_recipe_without_its_data_says_which(vitreous):
    answer = vitreous("train", "vit_b16_in21k", "--dry-run")
    assert answer.code == 2
    assert answer.err.startswith("vitreous: no such file or folder: imagenet21k")
    assert answer.err.count("\n") == 1


def test_recipes_can_be_listed_filtered_and_read(vitreous):
    everything, some = vitreous("recipes").out, vitreous("recipes", "DeiT").out
    assert all(re.search(rf"^{name} ", everything, re.MULTILINE) for name in RUNS)
    assert re.findall(r"^(\w+_in1k) ", some, re.MULTILINE) == ["deit_ti16_in1k", "deit_s16_in1k", "deit_b16_in1k"]
    one = vitreous("recipes", "deit_s16_in1k").out
    assert "Expected: 79.9 %" in one
    assert "Unlike theirs: " in one
    assert re.search(r"^--model.drop_path +0.1 ", one, re.MULTILINE)
    assert "--model.patch_size" not in one


def test_recipes_can_be_read_by_machines(vitreous):
    listed = json.loads(vitreous("recipes", "fine_tune_b16", "--json").out)
    assert [recipe["expected"] for recipe in listed if recipe["name"].endswith("pets")] == ["94.43 %; theirs, Table 5"]
    one = json.loads(vitreous("recipes", "vit_b16_jft", "--json").out)
    assert from_dict(one["config"]) == RUNS["vit_b16_jft"]


@pytest.mark.parametrize(("name", "hint"), [("vit_b16_jtf", "did you mean vit_b16_jft"), ("§$%", "leave it out")])
def test_a_recipe_that_is_not_there_is_said_in_one_line(name, hint, vitreous):
    answer = vitreous("recipes", name)
    assert answer.code == 2
    assert hint in answer.err
    assert answer.err.count("\n") == 1
