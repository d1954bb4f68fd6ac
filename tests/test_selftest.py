import json

import numpy as np
import pytest
import torch

from google_reference import bit_forward, vit_jax_forward
from vitreous import selftest
from vitreous.selftest import LOGITS, Check, formula_images, formula_model
from vitreous.weights import google


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


def test_what_does_not_hold_ends_with_1(vitreous, monkeypatch):
    monkeypatch.setattr(selftest, "selftest", lambda model, progress: iter([Check("sum", "2", "3", False)]))
    assert vitreous("selftest").code == 1
