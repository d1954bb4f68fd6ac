"""What the head would say of every token at every depth: the logit lens (nostalgebraist, 2020), for images."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import Images, numbers, vit_of, watch_blocks
from vitreous.pooling import AttentionPooling
from vitreous.tokens import Tokens


@torch.no_grad()
def logit_lens(
    classifier: Classifier, images: Images, *, layers: Iterable[int] | None = None
) -> Float[Tensor, "layer batch token num_classes"]:
    """Log-probabilities of the classes for each token after each of `layers`, prefix tokens first.

    A token goes through the final norm, and the head scores it as if every token that is pooled were this one. `layers`
    are all by default, counted from 0 or backwards from -1; all of a large model take gigabytes.

    Raises:
        InputError: if the model is no ViT or has no such layer, or pools by attention: what its head scores is a mix of
            tokens, and no token.
    """
    vit = vit_of(classifier)
    if isinstance(classifier.pooling, AttentionPooling):
        raise InputError("the logit lens needs a head that scores tokens, not one behind AttentionPool; pool otherwise")
    chosen = numbers(layers, len(vit.blocks), "layers in a model")
    found: dict[int, Tensor] = {}

    def see(layer: int, tokens: Float[Tensor, "batch token width"]) -> None:
        each = vit.norm(tokens).flatten(0, 1)[:, None]
        alone = Tokens(prefix=each.expand(-1, 2, -1), patches=each, coords=each.new_zeros(1, 1, 2), grid=(1, 1))
        logits = classifier.head(classifier.pooling(alone)).float()
        found[layer] = logits.log_softmax(dim=-1).unflatten(0, tokens.shape[:2])

    watch_blocks(classifier, images, see, layers=chosen)
    return torch.stack([found[layer] for layer in chosen])
