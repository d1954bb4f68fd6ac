"""Attention and other arrays small enough for a page: a byte a value, deflated, as text."""

import base64
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Quantised:
    """Values in [0, largest of the row], each within 1/255 of that of what it was."""

    bytes: UInt8[Tensor, "*row value"]
    largest: Float[Tensor, "*row"]

    def restored(self) -> Float[Tensor, "*row value"]:
        """The values, as the page computes them."""
        return (self.bytes.float() / 255).square() * self.largest[..., None]


def quantised(weights: Float[Tensor, "*row value"]) -> Quantised:
    """Weights, nowhere negative, as bytes on a square-root scale, which keeps small ones apart."""
    largest = weights.amax(dim=-1)
    share = weights / largest.clamp_min(torch.finfo(weights.dtype).tiny)[..., None]
    return Quantised((255 * share.sqrt()).round().to(torch.uint8), largest)


def packed(*tensors: Tensor) -> str:
    """Little-endian bytes of all `tensors`, one behind the other, as raw deflate in base64."""
    arrays = (tensor.contiguous().cpu().numpy() for tensor in tensors)
    data = b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(deflate.compress(data) + deflate.flush()).decode()


def unpacked(text: str, dtype: str) -> np.ndarray:
    """The numbers in what `packed` made."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text), -zlib.MAX_WBITS), dtype)


def packed_attention(weights: Float[Tensor, "layer head token token"]) -> str:
    """The largest of each row as float32, then all bytes."""
    small = quantised(weights)
    return packed(small.largest.float(), small.bytes)
