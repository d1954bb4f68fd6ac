"""Principal components of features as colours, and maps on which images that are alike lie close."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.errors import InputError

LEAST_FOR_LAYOUT = 4


def principal_components(
    rows: Float[Tensor, "row column"], number: int
) -> tuple[Float[Tensor, "component column"], Float[Tensor, " component"]]:
    """Directions of the largest variance of `rows` around their mean, and their shares of all variance; float64, CPU.

    A direction's largest entry is positive, so that the same data always give the same sign.

    Raises:
        InputError: if there are not so many: a direction needs a column, and a row beside the mean.
    """
    if not 1 <= number <= (most := min(rows.shape[0] - 1, rows.shape[1])):
        shape = f"{rows.shape[0]:,} rows of {rows.shape[1]:,} numbers"
        raise InputError(f"{shape} have {max(most, 0):,} principal components, not {number:,}; ask for fewer")
    rows = rows.detach().cpu().double()  # Apple GPUs have no float64
    variances, directions = torch.linalg.eigh((rows - rows.mean(dim=0)).T.cov(correction=0))
    directions = directions.T.flip(0)[:number]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    variances = variances.flip(0).clamp_min(0)
    return directions * largest.sign(), variances[:number] / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)


def feature_colours(
    patches: Float[Tensor, "image row column width"],
) -> Float[Tensor, "image row column 3"]:
    """The first three principal components of patch features as red, green and blue in [0, 1].

    One basis for all images, so that one colour means one thing in all of them. A component's 1st and 99th percentile
    over all images become 0 and 1, and what lies beyond is cut: a few artefact patches do not darken the rest.

    Raises:
        InputError: if features have fewer than three channels, or there are fewer than four patches.
    """
    rows = patches.flatten(0, 2).detach().cpu().double()
    directions, _ = principal_components(rows, 3)
    values = ((rows - rows.mean(dim=0)) @ directions.T).numpy()
    low, high = np.percentile(values, (1, 99), axis=0)
    scaled = (values - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    return torch.from_numpy(scaled).clamp(0, 1).float().unflatten(0, patches.shape[:3])


def layout(
    features: Float[Tensor, "image width"], *, method: Literal["tsne", "umap"] = "tsne", seed: int = 0
) -> Float[Tensor, "image 2"]:
    """A place in the plane for each image, near those with like features: t-SNE by scikit-learn, or UMAP by umap-learn.

    Both with their own defaults, but for fewer neighbours where there are few images (perplexity at most a third of
    them). Distances are Euclidean. t-SNE starts from principal components, so that `seed` hardly matters to it.

    Raises:
        InputError: if there are fewer than four images, or the library is not installed.
    """
    number, rows = features.shape[0], features.detach().cpu().float().numpy()
    if number < LEAST_FOR_LAYOUT:
        raise InputError(f"a layout needs at least {LEAST_FOR_LAYOUT} images, got {number}")
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise InputError("t-SNE needs scikit-learn; pip install 'vitreous[plot]'") from None
        found = TSNE(perplexity=min(30.0, number / 3), init="pca", random_state=seed).fit_transform(rows)
    else:
        try:
            from umap import UMAP
        except ImportError:
            raise InputError("UMAP needs umap-learn; pip install 'vitreous[umap]'") from None
        found = UMAP(n_neighbors=min(15, number - 1), random_state=seed, n_jobs=1).fit_transform(rows)
    return torch.from_numpy(np.asarray(found, np.float32))
