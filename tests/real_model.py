"""Real weights and photos beside the repository, and timm's model of the same weights."""

import tarfile
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vitreous.classifier import Classifier
from vitreous.predict import load

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def real_model(shared: Path) -> tuple[Classifier, nn.Module]:
    """ViT-Ti/16, ours and timm's in float64."""
    path = shared / "weights" / NAME / "model.safetensors"
    theirs = timm.create_model(NAME, pretrained=False).eval()
    theirs.load_state_dict(load_file(path))
    return load(path, device="cpu").module, theirs.double()


def real_photos(shared: Path, number: int) -> Tensor:
    """Photos of Imagenette, in no order, as those weights expect them."""
    model = load(shared / "weights" / NAME / "model.safetensors", device="cpu")
    images = []
    with tarfile.open(shared / "data" / "imagenette224" / "imagenette224_val.tar") as tar:
        for member in tar:
            if member.isreg() and len(images) < number:
                content = tar.extractfile(member)
                assert content is not None
                images.append(model.preprocess(content.read()))
    return torch.stack(images)
