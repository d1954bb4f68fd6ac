import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.bit.configuration_bit import BitConfig
from transformers.models.bit.modeling_bit import BitBackbone

from references import difference, epsilons, random_images, randomise, read, same_tensors, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.head import LinearHead
from vitreous.pooling import Mean
from vitreous.position import Learned, RoPE2d
from vitreous.resnet import TIMM, ResNetStem
from vitreous.weights import huggingface, layouts
from vitreous.weights.convert import write
from vitreous.weights.huggingface import BEFORE_5, HYBRID_RULES, RULES
from vitreous.weights.mapping import rename
from vitreous.weights.product import Product, load_product

IMAGES = random_images(2, 3, 32, 32)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
MODELS: dict[str, dict[str, Any]] = {
    "as Google's": {},
    "tanh GELU": {"hidden_act": "gelu_new"},
    "the other name of the tanh GELU": {"hidden_act": "gelu_pytorch_tanh"},
    "QuickGELU": {"hidden_act": "quick_gelu"},
    "no bias of queries, keys and values": {"qkv_bias": False},
    "another epsilon": {"layer_norm_eps": 1e-5},
    "an oblong image": {"image_size": [32, 48]},
    "one channel": {"num_channels": 1},
}
VIEW = EvalView(image_size=32, squash=True, interpolation="bilinear", crop_ratio=1.0)


def theirs(kind: str = "ViTForImageClassification", **changes):
    """A model of transformers' with random weights."""
    return randomise(getattr(transformers, kind)(transformers.ViTConfig(**(SHAPE | changes))))


def document(model) -> dict[str, Any]:
    """Its config.json."""
    return json.loads(model.config.to_json_string(use_diff=False))


def images_for(changes) -> torch.Tensor:
    size = changes.get("image_size", 32)
    return random_images(2, changes.get("num_channels", 3), *(size if isinstance(size, list) else (size, size)))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_a_model_of_version_5_computes_what_transformers_computes(changes):
    model, images = theirs(**changes), images_for(changes)
    ours = read(model.state_dict(), document(model))
    assert difference(ours(images), model(images).logits) < 1e-5
    assert epsilons(ours) == epsilons(model) == {model.config.layer_norm_eps}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_names_of_version_4_are_the_same_model(changes):
    model = theirs(**changes)
    tensors = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    before = {
        name if name.startswith("classifier.") else f"vit.{name}": tensor
        for name, tensor in rename(tensors, BEFORE_5).items()
    }
    assert "vit.encoder.layer.1.attention.attention.query.weight" in before
    now, then = (read(names, document(model)) for names in (model.state_dict(), before))
    assert now.config == then.config
    assert same_tensors(then.state_dict(), now.state_dict())


@pytest.mark.parametrize("size", [None, 24])
@torch.no_grad()
def test_the_pooler_is_the_representation(size):
    model = theirs("ViTModel", pooler_output_size=size)
    ours = read(model.state_dict(), document(model))
    found, pooled = ours.features(IMAGES), model(IMAGES)
    assert difference(found, pooled.last_hidden_state[:, 0]) < 1e-5
    represented = torch.tanh(ours.head.get_submodule("representation")(found))
    assert difference(represented, pooled.pooler_output) < 1e-5
    assert "head.linear.weight" not in layouts.read(model.state_dict(), document(model)).tensors


def test_what_masked_pre_training_needs_stays_behind():
    model = theirs("ViTForMaskedImageModeling", encoder_stride=8)
    foreign = layouts.read(model.state_dict(), document(model))
    assert foreign.left == ("the mask token", "the decoder")
    found = layouts.classifier_of(foreign).features(IMAGES)
    assert difference(found, model.vit(IMAGES).last_hidden_state[:, 0]) < 1e-5


@torch.no_grad()
def test_a_hybrid_of_version_4_computes_what_transformers_bit_and_vit_compute():
    eps = {
        "norm_eps": TIMM.norm,
        "variance_eps": TIMM.variance,
        "deviation_eps": TIMM.deviation,
    }
    position = Learned(resampling="bicubic")
    encoder = tiny(stem=ResNetStem(units=(1, 2), **eps), image_size=48, norm_eps=1e-12, position=position)
    config = ClassifierConfig(encoder=encoder, num_classes=5)
    ours = randomise(config.build())
    tensors = dict(ours.state_dict())
    places = torch.cat(
        [tensors.pop("encoder.position.class_token"), tensors.pop("encoder.position.table").flatten(0, 1)]
    )
    tensors |= {
        "embeddings.cls_token": tensors.pop("encoder.prefix")[None],
        "embeddings.position_embeddings": places[None],
    }
    for name in [name for name in tensors if ".attention.qkv." in name]:
        for part, tensor in zip(("query", "key", "value"), tensors.pop(name).chunk(3)):
            tensors[name.replace("qkv", part)] = tensor
    names = rename(rename(tensors, (*HYBRID_RULES, *RULES)), BEFORE_5)

    backbone, start = "embeddings.patch_embeddings.backbone.", "embeddings.patch_embeddings.projection."
    bit = BitBackbone(
        BitConfig(
            layer_type="bottleneck",
            global_padding="same",
            embedding_dynamic_padding=True,
            depths=[1, 2],
            hidden_sizes=[256, 512],
            out_features=["stage2"],  # pyright: ignore[reportCallIssue]
        )
    ).eval()
    bit.load_state_dict({n.removeprefix(backbone): t for n, t in names.items() if n.startswith(backbone)})
    images = random_images(2, 3, 48, 48)
    features = bit(images).feature_maps[0]
    stem = torch.nn.functional.conv2d(features, names[f"{start}weight"], names[f"{start}bias"])
    assert difference(ours.encoder.get_submodule("stem")(images), stem) < 1e-5
    assert epsilons(ours) == epsilons(bit) | {1e-12}

    said = {"model_type": "vit-hybrid", "image_size": 48, "patch_size": 1, "num_attention_heads": 4}
    found = read({f"vit.{name}" if "classifier" not in name else name: t for name, t in names.items()}, said)
    assert found.config == config
    assert same_tensors(found.state_dict(), ours.state_dict())


@pytest.mark.parametrize("kind", ["deit", "dinov2", "beit", "siglip_vision_model"])
def test_other_models_of_transformers_are_refused_by_name(kind):
    with pytest.raises(InputError, match=rf"transformers' {kind} is not read .*timm:NAME\.TAG"):
        read(theirs().state_dict(), {"model_type": kind})


def test_another_activation_is_refused():
    with pytest.raises(InputError, match="trained with relu; vitreous has gelu, gelu_new"):
        read(theirs().state_dict(), {"hidden_act": "relu"})


def test_another_activation_of_the_pooler_is_refused():
    model = theirs("ViTModel", pooler_act="gelu")
    with pytest.raises(InputError, match="the pooler of these weights was trained with gelu; vitreous has tanh"):
        read(model.state_dict(), document(model))


def test_a_config_of_another_model_is_noticed():
    with pytest.raises(
        InputError, match=r"position_embeddings has 17 places, no grid of 2 x 2 patches after 1 of other tokens"
    ):
        read(theirs().state_dict(), {"image_size": 32, "patch_size": 16})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"do_rescale": False}, "do_rescale false"),
        ({"resample": 4}, "the filter 4"),
        ({"size": {"shortest_edge": 32}}, "a size of the shortest edge and no crop"),
        (
            {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
            "a resize to a square and then a crop",
        ),
        ({"size": 40, "do_center_crop": True, "crop_size": 32}, "a resize to a square and then a crop"),
    ],
)
def test_a_preparation_that_no_view_does_is_refused(said, message):
    with pytest.raises(InputError, match=rf"preprocessor_config\.json has {message}, which vitreous cannot do"):
        read(theirs().state_dict(), {"preprocessor_config.json": said})


@pytest.mark.parametrize(
    "document",
    [{"patch_size": 0}, {"layer_norm_eps": "a"}, {"num_attention_heads": "4"}, {"num_attention_heads": 0}],
    ids=str,
)
def test_a_config_with_a_value_that_cannot_be_is_one_line(document):
    with pytest.raises(InputError) as error:
        read(theirs().state_dict(), document)
    assert "\n" not in str(error.value)


def test_without_a_config_what_it_would_say_is_assumed(tmp_path):
    model = theirs(num_attention_heads=1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    product = load_product(tmp_path, weights="weights.pth")
    assert product.extra["assumed"].endswith("assumed 1 heads, pixels from -1 to 1, the image squeezed to a square")
    assert (product.view, product.classes) == (VIEW, None)
    assert difference(product.classifier(IMAGES), model(IMAGES).logits) < 1e-5


def test_the_names_of_classes_are_read(tmp_path):
    labels = {0: "tench", 1: "goldfish", 2: "猫", 3: "a, b", 4: "LABEL_4"}
    theirs(id2label=labels).save_pretrained(tmp_path)
    assert load_product(tmp_path).classes == tuple(labels.values())


def test_names_that_transformers_makes_up_are_none(tmp_path):
    theirs().save_pretrained(tmp_path)
    product = load_product(tmp_path)
    assert product.classes is None
    assert "heads" not in product.extra["assumed"]


@pytest.mark.parametrize(
    ("said", "view"),
    [
        ({}, VIEW),
        ({"size": 32, "resample": 2, "do_resize": True}, VIEW),
        ({"size": {"height": 32, "width": 32}, "resample": 3}, dataclasses.replace(VIEW, interpolation="bicubic")),
        (
            {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3]},
            dataclasses.replace(VIEW, squash=False, crop_ratio=32 / 36, mean=(0.1, 0.2, 0.3)),
        ),
        (
            {"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": 32, "image_std": [1, 1, 1]},
            dataclasses.replace(VIEW, std=(1, 1, 1)),
        ),
        ({"do_normalize": False}, dataclasses.replace(VIEW, mean=(0, 0, 0), std=(1, 1, 1))),
    ],
)
def test_the_preparation_of_images_is_read(said, view, tmp_path):
    theirs().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said or {"image_processor_type": "x"}))
    assert load_product(tmp_path).view == view


def test_the_image_is_resized_to_the_pixel_that_was_said():
    for crop in (32, 160, 224, 384):
        for size in range(crop, crop * 3 // 2):
            said = {"size": {"shortest_edge": size}, "crop_size": crop, "do_center_crop": True}
            assert EvalView(image_size=crop, **huggingface._view(said)).covered == (size, size)


WRITABLE = {
    "the paper's": tiny(),
    "another epsilon": tiny(norm_eps=1e-12),
    "tanh GELU": tiny(feed_forward=GELU(tanh=True)),
    "QuickGELU": tiny(feed_forward=QuickGELU()),
    "no bias of queries, keys and values": tiny(qkv_bias=False),
    "an oblong image": tiny(image_size=(32, 48)),
    "one channel": tiny(channels=1),
    "another resize of positions": tiny(position=Learned(resampling="bicubic")),
}
CLASSES = ("tench", "猫", 'a "b"')


def product_of(encoder, view=VIEW, classes=CLASSES) -> Product:
    config = ClassifierConfig(encoder=encoder, num_classes=3)
    view = dataclasses.replace(view, image_size=encoder.image_size)
    return Product(randomise(config.build()), view, classes)


def loaded(kind: str, folder: Path, **options) -> Any:
    """A model of transformers', which found in the folder all that it has and nothing else."""
    model, loading = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(loading.values())
    return model.eval()


@pytest.mark.parametrize("encoder", WRITABLE.values(), ids=WRITABLE)
@torch.no_grad()
def test_transformers_loads_what_is_written(encoder, tmp_path):
    product = product_of(encoder)
    write(product, tmp_path / "model", to="hf")
    model = loaded("ViTForImageClassification", tmp_path / "model")
    images = random_images(2, encoder.channels, *encoder.image_shape)
    assert difference(model(images).logits, product.classifier(images)) < 1e-5
    assert epsilons(model) == epsilons(product.classifier)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: i for i, name in enumerate(CLASSES)}


@pytest.mark.parametrize("encoder", WRITABLE.values(), ids=WRITABLE)
def test_what_is_written_reads_as_the_same_model_bit_for_bit(encoder, tmp_path):
    product = product_of(encoder)
    write(product, tmp_path / "model", to="hf")
    path = tmp_path / "model" / "config.json"
    alone = {name: said for name, said in json.loads(path.read_text()).items() if name != "vitreous"}
    path.write_text(json.dumps(alone))
    again = load_product(tmp_path / "model")
    position = Learned(resampling="bicubic")  # as transformers resizes
    assert again.classifier.config.encoder == dataclasses.replace(encoder, position=position)
    assert same_tensors(again.classifier.state_dict(), product.classifier.state_dict())
    assert (again.view, again.classes) == (product.view, product.classes)


def test_gradients_are_transformers(tmp_path):
    product = product_of(tiny())
    write(product, tmp_path / "model", to="hf")
    model = loaded("ViTForImageClassification", tmp_path / "model")
    ours = product.classifier
    ours(IMAGES).square().sum().backward()
    model(IMAGES).logits.square().sum().backward()
    gradients: dict[str, Any] = {name: parameter.grad for name, parameter in ours.named_parameters()}
    qkv = torch.cat([getattr(model.vit.layers[0].attention, f"{part}_proj").weight.grad for part in "qkv"])
    assert difference(gradients["encoder.blocks.0.attention.qkv.weight"], qkv) < 1e-5
    stem = model.vit.embeddings.patch_embeddings.projection.weight.grad
    assert difference(gradients["encoder.stem.weight"], stem) < 1e-5


def test_a_headless_model_is_loaded_as_an_encoder(tmp_path):
    product = product_of(tiny(), classes=None)
    product.extra["headless"] = True
    write(product, tmp_path / "model", to="hf")
    model = loaded("ViTModel", tmp_path / "model", add_pooling_layer=False)
    assert difference(model(IMAGES).last_hidden_state[:, 0], product.classifier.features(IMAGES)) < 1e-5


@pytest.fixture(scope="module")
def photo(shared) -> Image.Image:
    with tarfile.open(shared / "data" / "imagenette224" / "imagenette224_val.tar") as archive:
        member = next(member for member in archive if member.name.endswith((".jpg", ".JPEG", ".jpeg", ".png")))
        file = archive.extractfile(member)
        assert file is not None
        return Image.open(io.BytesIO(file.read())).convert("RGB")


VIEWS = {
    "squeezed": EvalView(image_size=96, squash=True, interpolation="bilinear", crop_ratio=1.0),
    "squeezed, oblong": EvalView(image_size=(64, 96), squash=True, crop_ratio=1.0),
    "cropped": EvalView(image_size=96, crop_ratio=0.875, interpolation="bilinear", mean=(0.485, 0.456, 0.406)),
    "cropped, bicubic": EvalView(image_size=96, crop_ratio=0.9, std=(0.229, 0.224, 0.225)),
    "kept whole": EvalView(image_size=96, crop_ratio=1.0),
    "enlarged": EvalView(image_size=288, crop_ratio=0.9),
    "cropped, oblong": EvalView(image_size=(64, 96), crop_ratio=0.8),
}


PHOTOS = {
    f"{name}, {height} x {width}": (view, (height, width))
    for name, view in VIEWS.items()
    for height, width in [(224, 224), (168, 224), (200, 150)]
    # transformers cannot resize an image to cover a view that is no square
    if view.squash or view.shape[0] == view.shape[1] or height == width
}


@pytest.mark.parametrize(("view", "shape"), PHOTOS.values(), ids=PHOTOS)
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_transformers_prepares_a_photo_as_the_view_does(view, backend, shape, photo, tmp_path):
    write(product_of(tiny(image_size=view.image_size), view), tmp_path / "model", to="hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend=backend)
    image = photo.resize(shape[::-1])
    found = processor(image, return_tensors="pt").pixel_values[0]
    expected = view.normalise(view(image))
    assert found.shape == expected.shape
    levels = ((found - expected).abs() * torch.tensor(view.std)[:, None, None] * 255).round()
    assert levels.max() <= (0 if backend == "pil" else 2)  # torchvision rounds its bicubic filter, too
    assert (levels > 1).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("config", "lack"),
    [
        (ClassifierConfig(encoder=tiny(num_registers=4)), "num_registers=4"),
        (ClassifierConfig(encoder=tiny(feed_forward=SwiGLU())), "feed_forward=SwiGLU"),
        (ClassifierConfig(encoder=tiny(position=RoPE2d())), "position=RoPE2d"),
        (ClassifierConfig(encoder=tiny(), pooling=Mean()), "pooling=Mean"),
        (ClassifierConfig(encoder=tiny(), head=LinearHead(representation=8)), "head=LinearHead"),
        (ClassifierConfig(encoder=tiny(stem=ResNetStem(units=(1, 1)))), "stem=ResNetStem"),
    ],
)
def test_what_transformers_lacks_is_not_written(config, lack):
    with pytest.raises(InputError, match=f"transformers has no model with .*{lack}.*; write timm, whose folders"):
        huggingface.write(config.build())
