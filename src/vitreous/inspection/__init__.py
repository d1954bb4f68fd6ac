"""Looking inside any checkpoint. Names are imported when they are first used."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitreous.inspection.attention import attention_maps, full_attention, watch
    from vitreous.inspection.components import feature_colours, layout
    from vitreous.inspection.distance import AttentionStatistics, attention_statistics, grid_distances
    from vitreous.inspection.faithfulness import Faithfulness, faithfulness
    from vitreous.inspection.filters import FilterComponents, filter_components
    from vitreous.inspection.gallery import reconstruction_gallery
    from vitreous.inspection.lens import logit_lens
    from vitreous.inspection.neighbours import Neighbours, nearest
    from vitreous.inspection.norms import TokenNorms, token_norms
    from vitreous.inspection.occlusion import occlusion
    from vitreous.inspection.positions import position_similarity
    from vitreous.inspection.relevance import relevance
    from vitreous.inspection.rollout import gradient_rollout, rollout

__all__ = [
    "AttentionStatistics",
    "Faithfulness",
    "FilterComponents",
    "Neighbours",
    "TokenNorms",
    "attention_maps",
    "attention_statistics",
    "faithfulness",
    "feature_colours",
    "filter_components",
    "full_attention",
    "gradient_rollout",
    "grid_distances",
    "layout",
    "logit_lens",
    "nearest",
    "occlusion",
    "position_similarity",
    "reconstruction_gallery",
    "relevance",
    "rollout",
    "token_norms",
    "watch",
]

_HOMES = {
    "attention": ("attention_maps", "full_attention", "watch"),
    "components": ("feature_colours", "layout"),
    "distance": ("AttentionStatistics", "attention_statistics", "grid_distances"),
    "faithfulness": ("Faithfulness", "faithfulness"),
    "filters": ("FilterComponents", "filter_components"),
    "gallery": ("reconstruction_gallery",),
    "lens": ("logit_lens",),
    "neighbours": ("Neighbours", "nearest"),
    "norms": ("TokenNorms", "token_norms"),
    "occlusion": ("occlusion",),
    "positions": ("position_similarity",),
    "relevance": ("relevance",),
    "rollout": ("gradient_rollout", "rollout"),
}


class _Package(ModuleType):
    """A package whose functions are not hidden by the files they lie in: importing one sets it as an attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vitreous.inspection.{module}"), name)
    raise AttributeError(f"module 'vitreous.inspection' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
