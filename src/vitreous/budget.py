"""What a model, a training step and a run cost, from shapes alone: no weight is allocated, no formula kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.pooling import ClassToken, Mean
from vitreous.tokens import Encoder
from vitreous.variants import title
from vitreous.vit import ViTConfig


@dataclass(frozen=True)
class Cost:
    """The size of a classifier and the work of one forward pass."""

    parameters: int
    """Trained numbers, head included."""
    gflops: float
    """Billions of floating-point operations an image (two per multiply-add), at `image_size`."""
    tokens: int
    """Sequence length at `image_size`; of a ResNet, places of its last feature map."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step holds at most.

    The backward pass frees activations while it makes gradients, so the peak may be lower by the smaller of both.
    Not in it: workspaces of kernels, the device's context, and what the allocator wastes.
    """

    parameters: int
    gradients: int
    optimizer: int
    """What the optimizer remembers between steps."""
    weights: int
    """What autograd holds however many images there are: weights cast to the precision, or standardised."""
    activations: int
    """What autograd holds for each image of the batch."""

    def total(self, batch_size: int) -> int:
        """Bytes with a batch of that many images."""
        return self.parameters + self.gradients + self.optimizer + self.weights + batch_size * self.activations

    def largest_batch(self, available: float) -> int:
        """Most images that fit into so many bytes; 0 if not even one does."""
        return max(int((available - self.total(0)) // self.activations), 0)


def plain_classifier(encoder: Encoder, *, num_classes: int = 1000) -> ClassifierConfig:
    """A linear layer on the class token, or on the mean where there is none."""
    has_token = isinstance(encoder, ViTConfig) and encoder.class_token
    return ClassifierConfig(encoder=encoder, pooling=ClassToken() if has_token else Mean(), num_classes=num_classes)


def cost(config: ClassifierConfig, *, image_size: int | tuple[int, int] | None = None) -> Cost:
    """Parameters, GFLOPs and tokens, as published tables count: all tokens go through all blocks.

    Convolutions, matrix products and both products of attention are counted, those of pooling and head too; norms,
    activations, softmax and biases are not. (timm's tables count norms: 0.1 % of B/16, 1.5 % of R26+B/32.)
    """

    def count(config: ClassifierConfig) -> tuple[int, ...]:
        classifier, images = _outline(config).requires_grad_(False), _one_image(config, image_size)
        with _counter() as counter:
            tokens = classifier.encoder(images)
            classifier.head(classifier.pooling(tokens))
        return _numbers(classifier), counter.get_total_flops(), tokens.prefix.shape[1] + tokens.patches.shape[1]

    parameters, flops, tokens = _of_depth(config, count)
    return Cost(parameters, flops / 1e9, tokens)


def computed_gflops(config: ClassifierConfig, *, image_size: int | tuple[int, int] | None = None) -> float:
    """A forward pass in training: `cost` without what the last block leaves out, since no head reads it."""

    def count(config: ClassifierConfig) -> tuple[int, ...]:
        classifier, images = _outline(config).requires_grad_(False), _one_image(config, image_size)
        with _counter() as counter:
            classifier(images)
        return (counter.get_total_flops(),)

    return _of_depth(config, count)[0] / 1e9


def training_exaflops(spent: Cost, *, images: float, epochs: float) -> float:
    """Floating-point operations of a training run, in 10^18 (the paper's Table 6).

    The backward pass takes two products for each of the forward pass.
    """
    return 3 * spent.gflops * images * epochs / 1e9


def memory(
    config: ClassifierConfig,
    *,
    optimizer: Callable[[dict[str, nn.Parameter]], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """What a training step holds on a GPU in `dtype`, float32 or under autocast; attention's weights are never stored.

    The batch is classified with cross-entropy; parameters, gradients and the optimizer's state are float32.
    """

    def count(config: ClassifierConfig) -> tuple[int, ...]:
        held = [_held(config, batch_size=batch_size, dtype=dtype) for batch_size in (2, 3)]
        return 4 * _numbers(_outline(config)), _state(config, optimizer), *held

    parameters, state, two, three = _of_depth(config, count)
    return Memory(parameters, parameters, state, 3 * two - 2 * three, three - two)


def _of_depth(config: ClassifierConfig, count: Callable[[ClassifierConfig], tuple[int, ...]]) -> tuple[int, ...]:
    """What `count` says of `config`; of a ViT, from one block and two, since its blocks are alike.

    Raises:
        InputError: if torch cannot count so far.
    """
    encoder = config.encoder
    try:
        if not isinstance(encoder, ViTConfig) or encoder.depth < 3:
            return count(config)
        one, two = (count(replace(config, encoder=replace(encoder, depth=depth))) for depth in (1, 2))
    except (RuntimeError, OverflowError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise InputError(f"{title(encoder)} for {config.num_classes:,} classes is too large to be counted") from error
    return tuple(first + (encoder.depth - 1) * (second - first) for first, second in zip(one, two))


def _outline(config: ClassifierConfig) -> Classifier:
    """A classifier whose parameters have shapes and no values."""
    with torch.device("meta"):
        return config.build()


def _one_image(config: ClassifierConfig, size: int | tuple[int, int] | None) -> Tensor:
    size = size or config.encoder.image_size
    shape = size if isinstance(size, tuple) else (size, size)
    return torch.empty(1, config.encoder.channels, *shape, device="meta")


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    with _Instead(UNCOUNTED), FlopCounterMode(display=False) as counter:
        yield counter


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _held(config: ClassifierConfig, *, batch_size: int, dtype: torch.dtype) -> int:
    """Bytes that autograd holds between forward and backward, parameters not counted."""
    classifier = _outline(config)
    with FakeTensorMode(allow_non_fake_inputs=True), _Instead(FUSED):
        classifier.to_empty(device="cuda")  # pretended: what autocast casts differs between devices
        images = torch.empty(batch_size, config.encoder.channels, *config.encoder.image_shape, device="cuda")
        labels = torch.empty(batch_size, dtype=torch.long, device="cuda")
        held: set[torch.UntypedStorage] = set()

        def hold(tensor: Tensor) -> Tensor:
            held.add(tensor.untyped_storage())
            return tensor

        enabled, before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", dtype != torch.float32)  # torch.autocast would refuse without a GPU
        torch.set_autocast_dtype("cuda", dtype)
        try:
            with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
                F.cross_entropy(classifier(images).float(), labels)
        finally:
            torch.set_autocast_enabled("cuda", enabled)
            torch.set_autocast_dtype("cuda", before)
            torch.clear_autocast_cache()
        held -= {parameter.untyped_storage() for parameter in classifier.parameters()}
        return sum(storage.nbytes() for storage in held)


def _state(config: ClassifierConfig, optimizer: Callable[[dict[str, nn.Parameter]], torch.optim.Optimizer]) -> int:
    """Bytes of the optimizer's state after a step."""
    classifier = _outline(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        classifier.to_empty(device="cpu")  # pretended; fused SGD would ask a driver for its GPU
        for parameter in classifier.parameters():
            parameter.grad = torch.empty_like(parameter)
        stepping = optimizer(dict(classifier.named_parameters()))
        stepping.step()
        tensors = (tensor for state in stepping.state.values() for tensor in state.values() if tensor is not None)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class _Instead(TorchFunctionMode):
    """A context in which some functions of torch are others."""

    def __init__(self, others: dict[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.others.get(func, func)(*args, **(kwargs or {}))


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Attention by a kernel of GPUs, which never stores the weights; without a GPU torch would choose another."""
    dtype = torch.get_autocast_dtype("cuda")
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if attn_mask is None and dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p)[0]
    bias = None if attn_mask is None else attn_mask.to(dtype).expand(*q.shape[:-1], k.shape[-2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p)[0]


FUSED = {F.scaled_dot_product_attention: _fused_attention}
UNCOUNTED = dict.fromkeys(
    (F.layer_norm, F.rms_norm, F.group_norm, F.gelu, Tensor.relu, Tensor.clamp, Tensor.sqrt), lambda x, *_, **__: x
)
"""They keep the shape, have no products to count, and take most of the time to trace."""
