import json

import numpy as np
import pytest
import torch

from google_reference import bit_forward, vit_jax_forward
from vitreous import selftest
from vitreous.data.views import EvalView
from vitreous.selftest import LOGITS, Check, formula_images, formula_model
from vitreous.weights import Product, google, save_product
from vitreous.weights.product import safetensors_bytes


@pytest.fixture(scope="module")
def checks():
    return list(selftest.selftest())


def test_everything_holds_here(checks):
    assert [check for check in checks if not check.holds] == []
    assert len(checks) > 12


@pytest.mark.parametrize("name", LOGITS)
def test_the_known_logits_are_a_computation_that_shares_no_code_with_ours(name):
    tensors = google.write(formula_model(name).double())
    forward = bit_forward if name == "BiT ResNet" else vit_jax_forward
    images = formula_images().permute(0, 2, 3, 1).numpy()
    logits = forward({key: tensor.detach().numpy() for key, tensor in tensors.items()}, images)
    np.testing.assert_allclose(LOGITS[name], logits[0], rtol=1e-12)


def test_arithmetic_that_is_off_does_not_hold(monkeypatch):
    true = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("vitreous.block.F.scaled_dot_product_attention", lambda *a, **k: true(*a, **k) * 1.001)
    broken = {check.name for check in selftest.selftest() if not check.holds}
    assert broken == {"logits of a small ViT", "logits of a small hybrid"}


def test_a_model_is_held_against_the_logits_saved_with_it(trained, vitreous, tmp_path):
    answer = vitreous("selftest", trained, "--json")
    last = json.loads(answer.out)[-1]
    assert answer.code == 0
    assert last["holds"]
    config = trained / "model" / "config.json"
    document = json.loads(config.read_text("utf-8"))
    document["vitreous"]["golden"]["logits"][0] += 0.1
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text(json.dumps(document))
    (copy / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes())
    answer = vitreous("selftest", copy)
    assert answer.code == 1
    assert "DOES NOT HOLD" in answer.out.splitlines()[-1]


def saved(folder, classifier, *, headless=False):
    product = Product(classifier, EvalView(image_size=32), extra={"headless": True} if headless else {})
    save_product(folder, product)
    return product


def last_check(folder):
    return list(selftest.selftest(str(folder)))[-1]


@pytest.mark.parametrize("headless", [False, True])
def test_noise_in_an_encoder_is_noticed_with_and_without_a_head(headless, tmp_path):
    product = saved(tmp_path / "model", formula_model("ViT"), headless=headless)
    assert last_check(tmp_path / "model").holds
    torch.nn.init.normal_(product.classifier.get_parameter("encoder.blocks.0.mlp.up.weight"))
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(safetensors_bytes(product.classifier.state_dict()))
    found = last_check(tmp_path / "model")
    assert found.name.startswith("features of" if headless else "logits of")
    assert found.holds is False


@pytest.mark.parametrize(
    "golden", [{}, [1.0], {"logits": [1.0]}, {"logits": [0.8, float("nan"), 0.0]}, {"logits": "many"}, {"logits": None}]
)
def test_saved_logits_that_are_damaged_do_not_hold(golden, tmp_path):
    saved(tmp_path / "model", formula_model("ViT"))
    path = tmp_path / "model" / "config.json"
    document = json.loads(path.read_text())
    document["vitreous"]["golden"] = golden
    path.write_text(json.dumps(document))
    assert last_check(tmp_path / "model").holds is False


def test_an_encoder_saved_with_the_logits_of_no_head_is_not_checked(tmp_path):
    saved(tmp_path / "model", formula_model("ViT"), headless=True)
    path = tmp_path / "model" / "config.json"
    document = json.loads(path.read_text())
    document["vitreous"]["golden"]["logits"] = document["vitreous"]["golden"].pop("features")
    path.write_text(json.dumps(document))
    assert last_check(tmp_path / "model").holds is None


def test_a_model_without_saved_logits_is_not_checked(vitreous, tmp_path):
    tensors = formula_model("ViT").state_dict()
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    assert last_check(tmp_path / "model.safetensors").holds is None
    answer = vitreous("selftest", tmp_path / "model.safetensors")
    assert answer.code == 0
    assert answer.out.splitlines()[-1].endswith("not checked")


def test_what_does_not_hold_ends_with_1(vitreous, monkeypatch):
    monkeypatch.setattr(selftest, "selftest", lambda model, progress: iter([Check("sum", "2", "3", False)]))
    assert vitreous("selftest").code == 1
