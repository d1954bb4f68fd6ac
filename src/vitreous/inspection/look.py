"""A model and some images, looked at part by part."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitreous.console import Console
from vitreous.data.source import Source
from vitreous.errors import InputError
from vitreous.evaluation.feature_store import feature_cache
from vitreous.evaluation.features import Frozen
from vitreous.inspection.attention import attention_maps
from vitreous.inspection.components import feature_colours, layout
from vitreous.inspection.distance import AttentionStatistics, attention_statistics
from vitreous.inspection.faithfulness import faithfulness
from vitreous.inspection.filters import FilterComponents, filter_components
from vitreous.inspection.findings import Explanation, Lens, Nearest
from vitreous.inspection.lens import logit_lens
from vitreous.inspection.neighbours import nearest
from vitreous.inspection.norms import TokenNorms, token_norms
from vitreous.inspection.occlusion import occlusion
from vitreous.inspection.pictures import evenly
from vitreous.inspection.positions import position_similarity
from vitreous.inspection.relevance import relevance
from vitreous.inspection.rollout import gradient_rollout, rollout
from vitreous.predict import Model
from vitreous.vit import ViTConfig

MOST_MAPPED = 6  # images that get maps of their own
FEWEST_IN_LAYOUT = 10
MOST_FILTERS = 28  # as the paper shows
MOST_NEIGHBOURS = 5
FAITHFULNESS_STEPS = 14
MOST_NAMED = 3  # classes that the logit lens keeps of each token

WITHOUT_IMAGES = {
    "positions": "how alike the positions of all patches are",
    "filters": "principal components of the first layer's filters",
}
WITH_IMAGES = {
    "distance": "how far each head looks, and how evenly",
    "norms": "lengths of tokens by layer, and the patches that stick out",
    "attention": "maps of each head's attention",
    "rollout": "attention followed through all layers",
    "features": "patches coloured by their features",
    "lens": "what the head reads after every layer",
    "explanations": "four maps of what a prediction rests on, and how faithful they are",
    "layout": "images laid out by their features",
    "neighbours": "nearest images of a gallery",
}
PARTS = WITHOUT_IMAGES | WITH_IMAGES


@dataclass(frozen=True)
class Look:
    """A model and its images; a method is named for the part that it sees."""

    model: Model
    config: ViTConfig
    pixels: UInt8[Tensor, "image 3 height width"]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    gallery: Source | None
    method: Literal["tsne", "umap"]
    batch_size: int
    console: Console

    def see(self, part: str) -> Any:
        """What is seen of `part`, on the CPU."""
        if part in WITH_IMAGES and not self.pixels.shape[0]:
            raise InputError(f"{part}: {WITH_IMAGES[part]}, needs images; give files or folders of them")
        if part in ("lens", "explanations"):
            self.model.check_head()
        look: Callable[[], Any] = getattr(self, part)
        return _on_cpu(look())

    @property
    def mapped(self) -> list[int]:
        return evenly(self.pixels.shape[0], MOST_MAPPED)

    @property
    def images(self) -> Float[Tensor, "image 3 height width"]:
        return self._normalised(self.pixels[self.mapped])

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.model.view.shape
        return -(-height // self.config.stride), -(-width // self.config.stride)

    def positions(self) -> Float[Tensor, "rows columns rows columns"]:
        return position_similarity(self.model.module, grid=self.grid)

    def filters(self) -> FilterComponents:
        pixels = self.config.channels * self.config.patch_size**2
        most = min(MOST_FILTERS, self.config.width - 1, pixels)
        return filter_components(self.model.module, number=most)

    def distance(self) -> AttentionStatistics:
        return attention_statistics(self.model.module, self._batches("distance"))

    def norms(self) -> TokenNorms:
        return token_norms(self.model.module, self._batches("norms"))

    def attention(self) -> Float[Tensor, "layer image head row column"]:
        return attention_maps(self.model.module, self.images, layers=self.layers, heads=self.heads)

    def rollout(self) -> Float[Tensor, "image row column"]:
        return rollout(self.model.module, self.images)

    def features(self) -> Float[Tensor, "image row column 3"]:
        with torch.inference_mode():
            tokens = self.model.module.encoder(self.images)
        return feature_colours(tokens.patches.unflatten(1, tokens.grid))

    def lens(self) -> Lens:
        seen = []
        with torch.inference_mode():
            said = self.model.module(self.images).argmax(dim=-1)
        for image, label in zip(self.images, said):  # one at a time: a layer has a score for each token and class
            shares = logit_lens(self.model.module, image[None]).exp()
            best = shares.topk(min(MOST_NAMED, shares.shape[-1]))
            seen.append((best.indices, best.values, shares[..., label]))
        return Lens(*(torch.cat(parts, dim=1) for parts in zip(*seen)))

    def explanations(self) -> dict[str, Explanation]:
        classifier, images = self.model.module, self.images
        window, stride = (4, 2) if min(self.grid) >= 8 else (1, 1)
        num_steps = min(FAITHFULNESS_STEPS, math.prod(self.grid))
        maps = {
            "rollout": rollout(classifier, images),
            "gradient rollout": gradient_rollout(classifier, images),
            "relevance": relevance(classifier, images),
            "occlusion": occlusion(classifier, images, window=window, stride=stride),
        }
        return {
            name: Explanation(map_, faithfulness(classifier, images, map_, num_steps=num_steps))
            for name, map_ in maps.items()
        }

    def layout(self) -> Float[Tensor, "image 2"]:
        if (number := self.pixels.shape[0]) < FEWEST_IN_LAYOUT:
            raise InputError(f"a layout needs {FEWEST_IN_LAYOUT} images, got {number}; give more of them")
        features = [self._features(batch) for batch in self._batches("layout")]
        return layout(torch.cat(features), method=self.method)

    def neighbours(self) -> Nearest:
        source, view = self.gallery, self.model.view
        if source is None:
            raise InputError("neighbours are looked for in labelled images; name them with --gallery DATA")
        known = Frozen(
            self.model.module,
            view,
            world=self.model.world,
            faster=self.model.inference,
            cache=feature_cache(),
            batch_size=self.batch_size,
            console=self.console,
        ).pooled(source)
        gallery = torch.from_numpy(known.values).to(self.images.device)
        found = nearest(self._features(self.images), gallery, k=min(MOST_NEIGHBOURS, len(source)))
        index = found.index.tolist()
        images = [torch.stack([view(source.image(i, min_side=view.min_side)) for i in row]) for row in index]
        return Nearest(
            files=tuple(tuple(source.name(i) for i in row) for row in index),
            labels=tuple(tuple(source.label(i) for i in row) for row in index),
            similarity=found.similarity,
            pixels=torch.stack(images),
        )

    @torch.inference_mode()
    def _features(self, images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image width"]:
        return self.model.inference.features(images).float()

    def _batches(self, label: str) -> Iterator[Float[Tensor, "image 3 height width"]]:
        with self.console.task(label, self.pixels.shape[0]) as task:
            done = 0
            for pixels in self.pixels.split(self.batch_size):
                yield self._normalised(pixels)
                task.update(done := done + pixels.shape[0])

    def _normalised(self, pixels: UInt8[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
        return self.model.view.normalise(pixels.to(self.model.world.device))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _on_cpu(getattr(value, f.name)) for f in fields(value)})
    return {name: _on_cpu(part) for name, part in value.items()} if isinstance(value, dict) else value
