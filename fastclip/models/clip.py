"""CLIP: an image tower and a text tower that meet in one space."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .config import CLIPConfig
from .contrastive import Contrastive
from .image import ImageTower
from .text import TextTower


class CLIP(ImageTower, TextTower, Contrastive):
    """Encode pictures and texts into one space, where matching pairs point the same way.

    The state dict has OpenAI's flat layout: the text tower's entries bear no prefix (hence the inheritance),
    the image tower's begin with "visual.".

    Args:
        config: the model's description, kept as `config`.
    """

    config: CLIPConfig

    def __init__(self, config: CLIPConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self._build_text(config.text_tower)
        self._build_visual(config.image_tower)
        self._build_scale(config.init_logit_scale, config.init_logit_bias)

    forward = Contrastive.forward  # type: ignore[assignment]  # not a single tower's

    def image_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the image tower."""
        yield self.visual

    def text_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the text tower's modules and parameters."""
        named: dict[str, nn.Module | nn.Parameter] = {**self._modules, **self._parameters}  # type: ignore[dict-item]
        for name, part in named.items():
            if name not in ("visual", "logit_scale", "logit_bias"):
                yield part
