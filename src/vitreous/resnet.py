"""The BiT ResNet: group norm and standardised convolutions, the paper's baseline and the stem of its hybrids.

Two kinds have been published. BiT's own (arXiv:1912.11370) normalises before each convolution and pads evenly;
it is `ResNet` here. The hybrids' stem (vision_transformer's `models_resnet.py`) normalises after each convolution
and pads as TensorFlow's SAME does; it is `ResNetStem`. Their epsilons differ by where weights come from.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import check_ranges
from vitreous.errors import InputError
from vitreous.stem import Patchify, Stem, lecun_normal_
from vitreous.tokens import Encoder, Tokens, coordinates

Image = Float[Tensor, "batch channels height width_px"]
GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class Epsilons:
    """What keeps divisions by small deviations in bounds."""

    norm: float
    """Of every group norm, added to the variance."""
    variance: float
    """Of the standardisation of weights, added to their variance."""
    deviation: float
    """Of the standardisation of weights, added to the root of that."""


VISION_TRANSFORMER = Epsilons(norm=1e-6, variance=0.0, deviation=1e-5)
"""Of the hybrids in the paper's code, and the default of `ResNetStem`."""
BIG_VISION = Epsilons(norm=1e-5, variance=1e-10, deviation=0.0)
"""Of big_vision and BiT, and the default of `ResNetConfig`."""
TIMM = Epsilons(norm=1e-5, variance=1e-8, deviation=0.0)


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1 (arXiv:1903.10520), padded evenly or as SAME."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, same: bool, eps: Epsilons) -> None:
        super().__init__(inputs, outputs, side, stride=stride, padding=0 if same else side // 2, bias=False)
        self.same, self.eps = same, eps

    def forward(self, x: Image) -> Image:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        variance = (variance + self.eps.variance).clamp(min=torch.finfo(variance.dtype).tiny)  # zero has no gradient
        weight = (self.weight - mean) / (variance.sqrt() + self.eps.deviation)
        if self.same:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return self._conv_forward(x, weight, None)


def pad_same(x: Image, side: int, stride: int, *, value: float = 0.0) -> Image:
    """Padded so that ceil(size / stride) windows of `side` fit; the odd pixel goes right and below (TensorFlow)."""
    height, width = (max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[-2:])
    if not height and not width:
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class PostActivationUnit(nn.Module):
    """A bottleneck with norm and ReLU after each convolution (ResNet v1): the hybrids'."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, eps: Epsilons) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = StandardisedConv(inputs, middle, 1, same=True, eps=eps)
        self.norm1 = nn.GroupNorm(GROUPS, middle, eps=eps.norm)
        self.conv2 = StandardisedConv(middle, middle, 3, stride=stride, same=True, eps=eps)
        self.norm2 = nn.GroupNorm(GROUPS, middle, eps=eps.norm)
        self.conv3 = StandardisedConv(middle, outputs, 1, same=True, eps=eps)
        self.norm3 = nn.GroupNorm(GROUPS, outputs, eps=eps.norm)
        self.shortcut, self.shortcut_norm = None, None
        if stride > 1 or inputs != outputs:
            self.shortcut = StandardisedConv(inputs, outputs, 1, stride=stride, same=True, eps=eps)
            self.shortcut_norm = nn.GroupNorm(GROUPS, outputs, eps=eps.norm)

    def forward(self, x: Image) -> Image:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return (x + y).relu()

    def start_as_identity(self) -> None:
        """The branch adds nothing at first."""
        nn.init.zeros_(self.norm3.weight)


class PreActivationUnit(nn.Module):
    """A bottleneck with norm and ReLU before each convolution (ResNet v2, arXiv:1603.05027): BiT's."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, eps: Epsilons) -> None:
        super().__init__()
        middle = outputs // 4
        self.norm1 = nn.GroupNorm(GROUPS, inputs, eps=eps.norm)
        self.conv1 = StandardisedConv(inputs, middle, 1, same=False, eps=eps)
        self.norm2 = nn.GroupNorm(GROUPS, middle, eps=eps.norm)
        self.conv2 = StandardisedConv(middle, middle, 3, stride=stride, same=False, eps=eps)
        self.norm3 = nn.GroupNorm(GROUPS, middle, eps=eps.norm)
        self.conv3 = StandardisedConv(middle, outputs, 1, same=False, eps=eps)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = StandardisedConv(inputs, outputs, 1, stride=stride, same=False, eps=eps)

    def forward(self, x: Image) -> Image:
        active = self.norm1(x).relu()
        y = self.conv1(active)
        y = self.conv2(self.norm2(y).relu())
        y = self.conv3(self.norm3(y).relu())
        return (x if self.shortcut is None else self.shortcut(active)) + y

    def start_as_identity(self) -> None:
        """The branch adds nothing at first."""
        nn.init.zeros_(self.conv3.weight)


def stages(
    unit: type[PostActivationUnit] | type[PreActivationUnit],
    units: tuple[int, ...],
    *,
    multiplier: int,
    eps: Epsilons,
) -> tuple[nn.Sequential, int]:
    """Stages of that many units each and the channels they end with; each stage but the first halves the image."""
    inputs, built = 64 * multiplier, []
    for stage, depth in enumerate(units):
        outputs = 256 * multiplier * 2**stage
        first = unit(inputs, outputs, stride=2 if stage else 1, eps=eps)
        built.append(nn.Sequential(first, *(unit(outputs, outputs, stride=1, eps=eps) for _ in range(depth - 1))))
        inputs = outputs
    return nn.Sequential(*built), inputs


def initialise(module: nn.Module) -> None:
    """Filters LeCun normal, norms at one and zero, and every unit an identity at first."""
    for part in module.modules():
        if isinstance(part, StandardisedConv):
            lecun_normal_(part.weight)
        elif isinstance(part, nn.GroupNorm):
            part.reset_parameters()
    for part in module.modules():
        if isinstance(part, PostActivationUnit | PreActivationUnit):
            part.start_as_identity()


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Encoder):
    """A BiT ResNet, the paper's baseline; defaults are R50x1."""

    units: tuple[int, ...] = (3, 4, 6, 3)
    """Bottlenecks in each stage."""
    multiplier: int = 1
    """How many times as many channels as an ordinary ResNet."""
    norm_eps: float = BIG_VISION.norm
    """Epsilon of every group norm."""
    variance_eps: float = BIG_VISION.variance
    """Added to the variance of a filter before it is standardised."""
    deviation_eps: float = BIG_VISION.deviation
    """Added to the deviation of a filter."""

    def __post_init__(self) -> None:
        check_ranges(self, **dict.fromkeys(("units", "multiplier", "image_size", "channels"), (1, math.inf)))
        # some filters start at zero, where a root without an epsilon has no gradient
        check_ranges(self, norm_eps=(0, 1), variance_eps=(1e-16, 1), deviation_eps=(0, 1))
        if not self.units:
            raise InputError("units is empty; a ResNet has at least one stage, such as 3,4,6,3")

    def build(self) -> "ResNet":
        """A freshly initialised encoder."""
        return ResNet(self)

    @property
    def epsilons(self) -> Epsilons:
        """The three as one."""
        return Epsilons(norm=self.norm_eps, variance=self.variance_eps, deviation=self.deviation_eps)

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return 128 * self.multiplier * 2 ** len(self.units)

    @property
    def stride(self) -> int:
        """Side of the square of pixels behind one place of the last feature map, about."""
        return 2 ** (len(self.units) + 1)


class ResNet(nn.Module):
    """Images in; out, each place of the last feature map is a patch token, and there is no prefix."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        eps = config.epsilons
        self.root = StandardisedConv(config.channels, 64 * config.multiplier, 7, stride=2, same=False, eps=eps)
        self.stages, width = stages(PreActivationUnit, config.units, multiplier=config.multiplier, eps=eps)
        self.norm = nn.GroupNorm(GROUPS, width, eps=eps.norm)
        self.init_weights()

    def forward(self, images: Image) -> Tokens:
        x = F.max_pool2d(F.pad(self.root(images), (1, 1, 1, 1)), 3, stride=2)  # zeros compete in the pool, as in BiT
        x = self.norm(self.stages(x)).relu()
        grid = x.shape[-2], x.shape[-1]
        patches = x.flatten(2).transpose(1, 2)
        return Tokens(
            prefix=patches.new_zeros(patches.shape[0], 0, patches.shape[2]),
            patches=patches,
            coords=coordinates(grid, images.device)[None],
            grid=grid,
        )

    @torch.no_grad()
    def init_weights(self) -> None:
        """Every parameter anew."""
        if not self.root.weight.is_meta:  # as in ViT
            initialise(self)


@dataclass(frozen=True, kw_only=True)
class ResNetStem(Stem):
    """The stages of a ResNet before the patches of a hybrid (the paper's Sec. 3.1 and App. B).

    Defaults are the paper's option (ii) for R50: stage 4 left out, its layers in stage 3. Option (i) is units
    (3, 4, 6, 3) with patch_size 32. No units at all leave root and pool, as in R+Ti/16.
    """

    units: tuple[int, ...] = (3, 4, 9)
    """Bottlenecks in each stage; the image shrinks by 4, and by 2 more in each stage after the first."""
    norm_eps: float = VISION_TRANSFORMER.norm
    """Epsilon of every group norm."""
    variance_eps: float = VISION_TRANSFORMER.variance
    """Added to the variance of a filter before it is standardised."""
    deviation_eps: float = VISION_TRANSFORMER.deviation
    """Added to the deviation of a filter."""

    def __post_init__(self) -> None:
        check_ranges(self, units=(1, math.inf), norm_eps=(0, 1), variance_eps=(0, 1), deviation_eps=(0, 1))

    def build(self, *, channels: int, width: int, patch_size: int) -> "ResNetPatches":
        return ResNetPatches(self, channels=channels, width=width, patch_size=patch_size)

    @property
    def epsilons(self) -> Epsilons:
        """The three as one."""
        return Epsilons(norm=self.norm_eps, variance=self.variance_eps, deviation=self.deviation_eps)

    @property
    def shrink(self) -> int:
        """How many times smaller the feature map is than the image, in each direction."""
        return 4 * 2 ** max(len(self.units) - 1, 0)


class ResNetPatches(nn.Module):
    """Root, pool and stages, then patches of the feature map, most often of 1 x 1, each through a linear layer."""

    def __init__(self, config: ResNetStem, *, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        if patch_size % config.shrink:
            raise InputError(
                f"this ResNet stem shrinks the image by {config.shrink}, so patch_size must be a multiple of it, "
                f"got {patch_size}; take {config.shrink}, or fewer units"
            )
        eps = config.epsilons
        self.root = StandardisedConv(channels, 64, 7, stride=2, same=True, eps=eps)
        self.norm = nn.GroupNorm(GROUPS, 64, eps=eps.norm)
        self.stages, features = stages(PostActivationUnit, config.units, multiplier=1, eps=eps)
        self.patches = Patchify().build(channels=features, width=width, patch_size=patch_size // config.shrink)

    def forward(self, images: Image) -> Float[Tensor, "batch width rows columns"]:
        x = self.norm(self.root(images)).relu()
        x = F.max_pool2d(pad_same(x, 3, 2, value=-math.inf), 3, stride=2)
        return self.patches(self.stages(x))

    def init_weights(self) -> None:
        """As the paper's code starts it."""
        initialise(self)
        self.patches.init_weights()
