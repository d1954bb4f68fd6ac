"""Attention as bytes: what is lost, and that text brings back the rest."""

import numpy as np
import pytest
import torch

from vitreous.inspection.packed_attention import packed, packed_attention, quantised, unpacked


def test_a_weight_is_right_to_a_255th_of_the_largest_in_its_row():
    weights = (8 * torch.randn(5, 3, 70, 70, generator=torch.Generator().manual_seed(0))).softmax(dim=-1)
    small = quantised(weights)
    assert small.bytes.dtype == torch.uint8
    torch.testing.assert_close(small.largest, weights.amax(dim=-1), rtol=0, atol=0)
    assert ((small.restored() - weights).abs() <= small.largest[..., None] / 255).all()


def test_the_largest_weight_of_a_row_and_zero_are_exact():
    restored = quantised(torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.0, 0.0]])).restored()
    assert restored[0, :2].tolist() == [0.5, 0.0]
    assert restored[1].tolist() == [0.0, 0.0, 0.0]


def test_small_weights_stay_apart():
    """Eight bits without the root would make both zero."""
    restored = quantised(torch.tensor([[1.0, 1e-3, 4e-4]])).restored()[0]
    assert restored[1] > restored[2] > 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_text_brings_back_every_number(dtype):
    tensor = (100 * torch.rand(7, 11, generator=torch.Generator().manual_seed(1))).to(dtype)
    text = packed(tensor)
    assert text.isascii()
    name = {torch.uint8: "u1", torch.float32: "<f4", torch.int64: "<i8"}[dtype]
    np.testing.assert_array_equal(unpacked(text, name).reshape(7, 11), tensor.numpy())


def test_attention_is_the_largest_of_each_row_and_then_all_bytes():
    weights = torch.rand(2, 3, 5, 5).softmax(dim=-1)
    data, small = unpacked(packed_attention(weights), "u1"), quantised(weights)
    rows = 2 * 3 * 5
    np.testing.assert_array_equal(data[: 4 * rows].copy().view("<f4"), small.largest.flatten().numpy())
    np.testing.assert_array_equal(data[4 * rows :], small.bytes.flatten().numpy())
