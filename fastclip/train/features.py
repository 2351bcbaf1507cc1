"""A model for pairs that come as features computed beforehand: what is trained is the projection into one space."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastclip.data.features import FeatureSource
from fastclip.models import CLIPConfig, TextTower, TwoTower


@dataclass(frozen=True)
class FeatureConfig:
    """Describe the model.

    Args:
        image_width: of the pictures' features.
        text_width: of the texts' features; None where they come as captions, which `text` then encodes.
        embed_dim: of the shared space.
        text: `TextTowerConfig.to_dict()` of the text tower, where there is one.
        init_logit_scale, init_logit_bias: as in CLIPConfig.
    """

    image_width: int
    text_width: int | None
    embed_dim: int
    text: dict[str, Any] | None
    init_logit_scale: float
    init_logit_bias: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts of plain values, ready for JSON."""
        return asdict(self)


class FeatureModel(TwoTower):
    """Project features of pictures, and features of texts or texts themselves, into the space of a CLIP.

    Args:
        source: the features, whose widths decide.
        config: of the CLIP whose space and text tower it takes.
    """

    def __init__(self, source: FeatureSource, config: CLIPConfig) -> None:
        reads = source.text_width is None
        super().__init__(
            None,
            TextTower(config.text_tower) if reads else None,
            image_width=source.image_width,
            text_width=config.embed_dim if source.text_width is None else source.text_width,
            embed_dim=config.embed_dim,
            init_logit_scale=config.init_logit_scale,
            init_logit_bias=config.init_logit_bias,
        )
        self.config = FeatureConfig(
            source.image_width,
            source.text_width,
            config.embed_dim,
            config.text_tower.to_dict() if reads else None,
            config.init_logit_scale,
            config.init_logit_bias,
        )
