import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from references import tiny
from vitreous.block import Axial, BranchNorm, Parallel
from vitreous.budget import computed_gflops, cost, memory, plain_classifier, training_exaflops
from vitreous.classifier import ClassifierConfig
from vitreous.feed_forward import SwiGLU
from vitreous.head import DistilledHead, LinearHead
from vitreous.optim import SGD, AdamW
from vitreous.pooling import AttentionPool, ClassAndDistillation, Mean
from vitreous.position import EveryLayer, Learned2d, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeKeys, RelativeMLP
from vitreous.resnet import ResNetConfig, ResNetStem, StandardisedConv
from vitreous.variants import PUBLISHED, encoder, vit

# Of the paper's code (models_test.py) and timm, with 1000 classes.
PARAMETERS = {
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "B/8": 86_576_872,
    "B/16@384": 86_859_496,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "L/14": 304_203_752,
    "L/16@384": 304_715_752,
    "H/14": 632_045_800,
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "S/32": 22_878_952,
    "g/14": 1_012_611_432,
    "G/14": 1_844_440_680,
    "R50+B/16": 98_659_112,
    "R50+L/32": 328_994_856,
    "R26+B/32": 101_383_976,
    "R26+S/32": 36_431_912,
    "R+Ti/16": 6_337_704,
}
# timm's published results and, at 518 pixels, DINOv2's, as printed; they count a multiply-add as one.
GIGA_MULTIPLY_ADDS = {
    "B/16": "17.58",
    "B/16@384": "55.54",
    "B/32": "4.41",
    "B/8": "78.22",
    "L/16": "61.6",
    "L/16@384": "191.21",
    "L/32": "15.39",
    "H/14": "167.4",
    "g/14": "267.18",
    "G/14": "483.95",
    "S/16": "4.61",
    "Ti/16": "1.26",
    "R50+B/16": "21.66",
    "R50+L/32": "19.58",
    "R26+B/32": "6.81",
    "S/14@518": "46.76",
    "B/14@518": "151.71",
    "L/14@518": "507.15",
    "g-opt/14@518": "1784.2",
}
# The paper's Table 6: epochs over 303 million images, exaFLOPs.
VITS_AND_HYBRIDS = [
    ("B/32", 7, 55),
    ("B/16", 7, 224),
    ("L/32", 7, 196),
    ("L/16", 7, 783),
    ("L/16", 14, 1567),
    ("H/14", 14, 4262),
    ("R50+B/32", 7, 106),
    ("R50+B/16", 7, 274),
    ("R50+L/32", 7, 246),
    ("R50+L/16", 7, 859),
    ("R50+L/16", 14, 1668),
]
RESNETS = [
    ("R50x1", 7, 50),
    ("R50x2", 7, 199),
    ("R101x1", 7, 96),
    ("R152x1", 7, 141),
    ("R152x2", 7, 563),
    ("R152x2", 14, 1126),
    ("R200x3", 14, 3306),
]
NORMED_ALIKE = [
    plain_classifier(tiny(depth=4, num_registers=3)),
    plain_classifier(tiny(depth=4, block=Parallel(), qkv_bias=False, stem_norm=True)),
    plain_classifier(tiny(depth=4, block=Axial(), class_token=False, position=Learned2d())),
    plain_classifier(tiny(depth=4, feed_forward=SwiGLU(), position=RoPE2d(), layer_scale=1e-5)),
    plain_classifier(tiny(depth=4, position=EveryLayer(), final_norm=False, drop_path=0.1)),
    plain_classifier(tiny(depth=4, position=EveryLayer(shared=True))),
    plain_classifier(tiny(depth=1, image_size=(32, 48), channels=1), num_classes=7),
    ClassifierConfig(encoder=tiny(depth=4, class_token=False, position=NoPosition()), pooling=AttentionPool()),
    ClassifierConfig(encoder=tiny(depth=4), head=LinearHead(representation=24)),
    ClassifierConfig(encoder=tiny(num_registers=1), pooling=ClassAndDistillation(), head=DistilledHead()),
]
NORMED_IN_FLOAT32_ON_GPUS_ALONE = [
    plain_classifier(tiny(depth=4, width=64, mlp_dim=128, block=BranchNorm(), position=SinCos2d())),
    plain_classifier(tiny(depth=4, stem=ResNetStem(units=(1, 2)))),
    plain_classifier(ResNetConfig(units=(1, 2), image_size=64)),
]
BIASED = [
    plain_classifier(tiny(depth=4, position=RelativeKeys())),
    plain_classifier(tiny(depth=4, position=RelativeBias())),
    plain_classifier(tiny(depth=4, position=RelativeMLP(shared=True))),
]
FUSED_ON_GPUS_ALONE = plain_classifier(tiny(depth=4, rms_norm=True, qk_norm=True))
EVERY_KIND = [*NORMED_ALIKE, *NORMED_IN_FLOAT32_ON_GPUS_ALONE, *BIASED, FUSED_ON_GPUS_ALONE]


def flops(config: ClassifierConfig, shape: tuple[int, ...], **options) -> int:
    """What torch counts in a forward pass, block by block, of all tokens."""
    model = config.build().requires_grad_(False)
    with FlopCounterMode(display=False, **options) as counter:
        model.head(model.pooling(model.encoder(torch.zeros(1, config.encoder.channels, *shape))))
    return counter.get_total_flops()


def held_bytes(config: ClassifierConfig, *, batch_size: int, dtype: torch.dtype) -> int:
    """What autograd really holds on this CPU, parameters not counted."""
    model, held = config.build(), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no place is used twice
        return tensor

    images = torch.rand(batch_size, config.encoder.channels, *config.encoder.image_shape)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(images)
        F.cross_entropy(logits.float(), torch.zeros(batch_size, dtype=torch.long))
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_models(name):
    assert cost(plain_classifier(encoder(name))).parameters == PARAMETERS[name]


def test_parameters_of_so400m_are_siglips():
    siglip = ClassifierConfig(encoder=vit("So400m/14", class_token=False), pooling=AttentionPool(), num_classes=1000)
    assert cost(siglip).parameters == 428_833_704


@pytest.mark.parametrize("name", GIGA_MULTIPLY_ADDS)
def test_operations_are_those_published_to_the_last_digit_once_norms_are_added(name):
    """timm's counter (fvcore) also counts 5 operations a number for a norm, 4 a weight to standardise it."""
    dinov2_giant = {"feed_forward": SwiGLU(), "mlp_dim": 4096, "num_heads": 24} if name.startswith("g-opt") else {}
    config = plain_classifier(encoder(name, **dinov2_giant))
    with torch.device("meta"):
        model, images = config.build(), torch.empty(1, 3, *config.encoder.image_shape)
    norms = []

    def count(module: nn.Module, _, out: torch.Tensor) -> None:
        norms.append(4 * module.weight.numel() if isinstance(module, StandardisedConv) else 5 * out.numel())

    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | StandardisedConv):
            module.register_forward_hook(count)
    model.encoder(images)
    published = GIGA_MULTIPLY_ADDS[name]
    half_a_digit = 0.5 * 10.0 ** -len(published.partition(".")[2])
    gmacs = cost(config).gflops / 2
    assert gmacs + sum(norms) / 1e9 == pytest.approx(float(published), abs=half_a_digit)
    if not isinstance(getattr(config.encoder, "stem", None), ResNetStem):
        assert gmacs == pytest.approx(float(published), rel=0.0051)


@pytest.mark.parametrize("config", EVERY_KIND)
def test_operations_are_those_torch_counts_in_every_block(config):
    height, width = (side * 2 for side in config.encoder.image_shape)
    spent = cost(config, image_size=(height, width))
    assert spent.gflops * 1e9 == pytest.approx(flops(config, (height, width)), rel=1e-12)
    assert spent.parameters == sum(parameter.numel() for parameter in config.build().parameters())


def test_tokens_are_patches_and_prefix():
    assert cost(plain_classifier(vit("B/16", num_registers=4))).tokens == 201
    assert cost(plain_classifier(vit("B/16")), image_size=384).tokens == 577
    assert cost(plain_classifier(encoder("R50x1"))).tokens == 49


@pytest.mark.parametrize(("name", "epochs", "published"), VITS_AND_HYBRIDS)
def test_runs_take_the_operations_of_the_papers_table_6(name, epochs, published):
    spent = cost(plain_classifier(encoder(name)))
    assert training_exaflops(spent, images=303e6, epochs=epochs) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("name", "epochs", "published"), RESNETS)
def test_resnets_are_in_table_6_without_the_products_with_padding(name, epochs, published):
    def places(image: int, side: int, stride: int, padding: int, out: int) -> int:
        return sum(0 <= stride * i - padding + j < image for i in range(out) for j in range(side))

    def inside(x, weight, bias, stride, padding, *_, out_val):
        down, across = (
            places(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], out_val.shape[2 + i]) for i in (0, 1)
        )
        return 2 * weight.shape[0] * weight.shape[1] * down * across

    inside._get_raw = True  # so that the counter hands over tensors, not shapes
    config = plain_classifier(encoder(name))
    with torch.device("meta"):
        model, images = config.build().requires_grad_(False), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: inside}) as counter:
        model(images)
    spent = cost(config)
    without = replace(spent, gflops=counter.get_total_flops() / 1e9)
    assert training_exaflops(without, images=303e6, epochs=epochs) == pytest.approx(published, rel=0.01)
    assert training_exaflops(spent, images=303e6, epochs=epochs) == pytest.approx(published, rel=0.042)


@pytest.mark.parametrize("config", NORMED_ALIKE)
def test_activations_in_bfloat16_are_what_autograd_holds_where_attention_is_fused(config, monkeypatch):
    def fused(q, k, v, *, bias=None, dropout=0.0):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)

    monkeypatch.setattr("vitreous.block.attend", fused)  # as on GPUs, which the budget is for
    said = memory(config, optimizer=AdamW().build, dtype=torch.bfloat16)
    real = held_bytes(config, batch_size=5, dtype=torch.bfloat16)
    assert said.weights + 5 * said.activations == pytest.approx(real, rel=0.001)
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize("config", NORMED_IN_FLOAT32_ON_GPUS_ALONE)
def test_activations_in_float32_are_what_autograd_holds(config):
    said = memory(config, optimizer=AdamW().build)
    real = held_bytes(config, batch_size=5, dtype=torch.float32)
    assert said.weights + 5 * said.activations == pytest.approx(real, rel=0.01)  # GPUs pad attention's sums


@pytest.mark.parametrize("config", BIASED)
def test_attention_with_a_bias_is_fused_too(config):
    assert memory(config, optimizer=AdamW().build).activations < held_bytes(config, batch_size=1, dtype=torch.float32)


def test_state_is_that_of_a_real_optimizer():
    model = plain_classifier(tiny()).build()
    for optimizer, tables in ((AdamW(), 2), (SGD(), 1), (SGD(momentum=0.0), 0)):
        said = memory(plain_classifier(tiny()), optimizer=optimizer.build)
        assert said.parameters == said.gradients == 4 * sum(parameter.numel() for parameter in model.parameters())
        steps = 4 * len(list(model.parameters())) if tables == 2 else 0  # Adam counts its steps
        assert said.optimizer == tables * said.parameters + steps


def test_the_largest_batch_fits_and_one_more_does_not():
    step = memory(plain_classifier(tiny()), optimizer=AdamW().build)
    largest = step.largest_batch(64 * 2**20)
    assert step.total(largest) <= 64 * 2**20 < step.total(largest + 1)
    assert step.largest_batch(1) == 0


MEASURED = """
import sys, torch, torch.nn.functional as F
from pathlib import Path
from vitreous.budget import plain_classifier
from vitreous.optim import AdamW
from vitreous.variants import encoder

def train(name, batch_size):
    model = plain_classifier(encoder(name)).build()
    optimizer = AdamW().build(dict(model.named_parameters()))
    for _ in range(2):
        images = torch.rand(batch_size, 3, *model.config.encoder.image_shape)
        F.cross_entropy(model(images), torch.zeros(batch_size, dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

print(-train("32x1/16@32", 2) + train(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak; getrusage would give our own if larger")
@pytest.mark.parametrize(("name", "batch_size"), [("S/16", 1), ("S/16", 16)])
def test_a_training_step_takes_the_memory_that_was_said_less_what_backward_frees_in_time(name, batch_size):
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc gives back what is freed
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, name, str(batch_size)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, measured = memory(plain_classifier(encoder(name)), optimizer=AdamW().build), int(done.stdout)
    smaller = min(said.gradients, batch_size * said.activations)
    print(f"{name}, {batch_size}: said {said.total(batch_size):,}, measured {measured:,}")
    assert 0.97 * (said.total(batch_size) - smaller) <= measured <= 1.03 * said.total(batch_size)


def test_what_no_head_reads_is_not_computed():
    """Of the last block: the queries' attention, its output and the feed-forward layer, for 196 patches."""
    left_out = 2 * 196 * (2 * 197 * 768 + 768 * 768 + 2 * 768 * 3072) / 1e9
    plain = plain_classifier(encoder("B/16"))
    assert computed_gflops(plain) == pytest.approx(cost(plain).gflops - left_out, rel=1e-9)
    pooled = replace(plain, pooling=Mean())
    assert computed_gflops(pooled) == pytest.approx(cost(pooled).gflops, rel=1e-9)


def test_models_lists_every_published_name_and_a_whole_name_alone(vitreous):
    everything = json.loads(vitreous("models", "--json").out)
    assert [row["name"] for row in everything] == list(PUBLISHED)
    assert [row["name"] for row in json.loads(vitreous("models", "r50X1", "--json").out)] == ["R50x1"]
    assert {"B/16", "R50+B/16"} < {row["name"] for row in json.loads(vitreous("models", "/16", "--json").out)}
    assert json.loads(vitreous("models", "B/16", "--json").out) == [row for row in everything if row["name"] == "B/16"]


def test_budget_says_the_same_to_people_and_machines(vitreous):
    options = ("B/16", "--images", "303e6", "--epochs", "7", "--memory", "16", "--tflops", "100", "--devices", "4")
    said = json.loads(vitreous("budget", *options, "--json").out)
    assert said["parameters"] == PARAMETERS["B/16"]
    assert said["exaflops"] == pytest.approx(224, rel=0.03)
    assert said["days"] == pytest.approx(said["exaflops"] * 1e18 / 400e12 / 86_400)
    assert said["memory"]["total"] < 16 * 2**30
    shown = vitreous("budget", *options).out
    for number in (f"{PARAMETERS['B/16']:,}", f"{said['memory']['largest_batch']:,}", f"{said['days']:.2f}"):
        assert number in shown


def test_budget_follows_its_options(vitreous):
    def budget(*options: str) -> dict:
        return json.loads(vitreous("budget", "32x2/8", *options, "--json").out)

    plain, step = budget(), budget()["memory"]
    assert budget("--image-size", "64")["tokens"] == 65
    assert budget("--classes", "10")["parameters"] == plain["parameters"] - 990 * 33
    assert budget("--optimizer", "sgd")["memory"]["optimizer"] == step["parameters"]
    assert budget("--precision", "float32")["memory"]["activations"] > step["activations"]
    assert budget("--batch-size", "33")["memory"]["total"] == step["total"] + step["activations"]
    assert plain["exaflops"] is plain["days"] is step["largest_batch"] is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("B/1x",), "did you mean"),
        (("B/16", "--image-size", "100"), "96"),
        (("B/16", "--images", "nan"), "--images must be more than 0"),
        (("B/16", "--batch-size", "0"), "--batch-size must be more than 0"),
        (("B/16", "--memory", "1e300"), "--memory must be more than 0 and at most 1e+15"),
        (("B/16", "--images", "1e9", "--tflops", "1e-308"), "--tflops must be more than 0"),
        (("B/16", "--image-size", "16000000"), "ViT B/16 for 1,000 classes is too large to be counted"),
        (("3200000000x1/16",), "is too large to be counted"),
        (("64x1/99999999999999999999",), "is too large to be counted"),
        (("R50x999999999",), "is too large to be counted"),
        (("B/16", "--tflops", "100"), "--images"),
        (("B/16", "--precision", "float8"), "bfloat16"),
    ],
)
def test_budget_explains_what_it_cannot_use(words, complaint, vitreous):
    answer = vitreous("budget", *words)
    assert answer.code == 2
    assert complaint in answer.err
    assert answer.err.count("\n") == 1
