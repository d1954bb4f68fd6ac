import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

import vitreous
from pictures import encoded, smooth
from references import randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.console import Console
from vitreous.data.decode import BadImage
from vitreous.errors import InputError
from vitreous.predict import to_image
from vitreous.predictions import predict_files


@pytest.fixture(scope="module")
def model(trained):
    return vitreous.load(trained, device="cpu")


def test_every_form_of_an_image_gives_the_same_answer(model, tmp_path):
    image = smooth(40, 30)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    forms = [
        image,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        array,
        array / 255,
        (array / 255).astype(np.float32),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array / 255).permute(2, 0, 1),
    ]
    answers = model.predict(forms)
    for answer in answers:  # the last digit of a float32 depends on the size of the batch
        assert dict(answer.top) == pytest.approx(dict(answers[0].top), abs=1e-6)
    assert [answer.file is not None for answer in answers] == [False, True, True] + [False] * 6
    assert len(model.predict(image)) == 1


def test_what_is_predicted_is_the_softmax_of_the_module(model, photos):
    files = sorted((photos / "sea").iterdir())
    pixels = torch.stack([model.preprocess(file) for file in files])
    with torch.inference_mode():
        logits = model.module(pixels)
        features = model.module.features(pixels)
    for answer, row in zip(model.predict(files, batch_size=5), logits.double().softmax(-1)):
        assert answer.label == model.classes[row.argmax()]
        assert answer.score == pytest.approx(float(row.max()), abs=1e-6)
        assert sum(score for _, score in answer.top) == pytest.approx(1)
    np.testing.assert_allclose(model.embed(files, batch_size=7), features, atol=1e-5)


def test_no_images_give_no_answers(model):
    assert model.predict([]) == []
    assert model.embed([]).shape == (0, 32)


def test_photos_are_turned_as_their_header_says(model):
    upright = smooth(40, 30)
    header = Image.Exif()
    header[0x0112] = 3
    turned = Image.open(io.BytesIO(encoded(upright.rotate(180), "PNG", exif=header)))
    assert model.predict(turned)[0].top == model.predict(upright)[0].top


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("gone.png", "gone.png: no such file"),
        (b"text", "not an image"),
        (np.zeros((4, 4, 7), np.uint8), r"got \(4, 4, 7\)"),
        (np.zeros((4, 4), np.int64), "uint8 or floats"),
        (np.full((4, 4), 3.0), "uint8 or floats"),
        (torch.zeros(1, 2, 3, 4), "tensor"),
        (torch.full((3, 4, 4), float("nan")), "uint8 or floats"),
        (3, "cannot read an image from int"),
    ],
)
def test_what_is_no_image_is_refused(picture, message, model):
    with pytest.raises(InputError, match=message):
        model.predict([picture])


def test_an_answer_shows_in_a_notebook(model, photos):
    answer = model.predict(photos / "sea" / "sea1.png")[0]
    assert "sea" in answer._repr_html_()
    assert "3 classes" in repr(model)


def test_weights_without_names_call_classes_by_number(model, trained):
    from vitreous.predict import Model

    assert Model(model.module, view=model.view, classes=None, device="cpu").classes == ("0", "1", "2")
    with pytest.raises(InputError, match="3 classes apart, but 2 names"):
        vitreous.load(trained, classes=["a", "b"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_turned_once(orientation, model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(smooth(40, 20), "JPEG", exif=exif))
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    pixels = model.preprocess(upright)
    assert torch.equal(model.preprocess(path), pixels)
    assert torch.equal(model.preprocess(to_image(path)), pixels)
    with Image.open(path) as file:
        assert torch.equal(model.preprocess(file), pixels)
    (said,), _ = predict_files(model, [str(path)], top=3, console=Console(quiet=True))
    assert said.top == model.predict(path, top=3)[0].top


@pytest.mark.parametrize(("number", "message"), [({"top": 0}, "top"), ({"batch_size": 0}, "batch_size")])
def test_numbers_that_make_no_sense_are_refused(number, message, model):
    with pytest.raises(InputError, match=message):
        model.predict(smooth(20, 20), **number)


def test_a_tensor_may_be_of_half_precision(model):
    pixels = torch.full((3, 16, 16), 0.5)
    assert torch.equal(model.preprocess(pixels.bfloat16()), model.preprocess(pixels))


@pytest.mark.parametrize(
    "picture", [Image.new("RGB", (0, 3)), np.zeros((0, 4), np.uint8), torch.zeros(3, 0, 4), None, 3, [[1, 2]]]
)
def test_what_has_no_pixels_is_refused(picture, model):
    with pytest.raises(InputError):
        model.predict(picture)


def test_an_image_that_was_opened_and_is_cut_short_is_refused(model, tmp_path):
    data = encoded(smooth(400, 300), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(BadImage, match="cannot be read"):
        model.predict(image)


def test_an_encoder_without_a_head_embeds_and_names_no_classes(tmp_path):
    plain = randomise(ClassifierConfig(encoder=tiny(num_heads=1)).build())
    save_file({n: t for n, t in plain.state_dict().items() if not n.startswith("head.")}, tmp_path / "x.safetensors")
    model, image = vitreous.load(tmp_path / "x.safetensors"), np.zeros((32, 32, 3), np.uint8)
    with torch.inference_mode():
        features = plain.features(model.preprocess(image)[None])
    np.testing.assert_allclose(model.embed(image), features.numpy(), atol=1e-5)
    assert "an encoder alone" in repr(model)
    with pytest.raises(InputError, match="names no classes"):
        model.predict(image)
