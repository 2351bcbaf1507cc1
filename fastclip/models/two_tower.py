"""Any two modules as towers, with trained projections into one space: timm, transformers, or your own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .contrastive import Contrastive


class TwoTower(Contrastive):
    """Encode both sides by given modules, project both into one space, and train what is not locked.

        encode_image(images) = image_projection(image_tower(images)),    likewise for texts

    With pretrained towers, locked (`lock(image=True, text=True)`), only the projections learn: LiT with both sides
    locked. Their features can then be computed once, ahead of training: a tower that is None takes them as they are.

    Args:
        image_tower: maps what encode_image is given, as a rule (B, 3, H, W), to (B, image_width); None takes features
            (B, image_width).
        text_tower: maps what encode_text is given, as a rule ids (B, L), to (B, text_width); None takes features.
        image_width, text_width: features that the towers give.
        embed_dim: features of the shared space.
        hidden: width of a hidden layer (with GELU) in each projection; None: a single matrix.
        init_logit_scale, init_logit_bias: as in CLIPConfig.
    """

    def __init__(
        self,
        image_tower: nn.Module | None,
        text_tower: nn.Module | None,
        *,
        image_width: int,
        text_width: int,
        embed_dim: int,
        hidden: int | None = None,
        init_logit_scale: float = 1 / 0.07,
        init_logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("image_width", image_width),
            ("text_width", text_width),
            ("embed_dim", embed_dim),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_width, self.text_width, self.embed_dim = image_width, text_width, embed_dim
        self.image_projection = _projection(image_width, hidden, embed_dim)
        self.text_projection = _projection(text_width, hidden, embed_dim)
        self._build_scale(init_logit_scale, init_logit_bias)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Encode pictures, or their features, to (B, embed_dim).

        Raises:
            ValueError: the tower, or what stands for it, gives another shape than (B, image_width).
        """
        x = self._features("image", self.image_tower, images, self.image_width)
        x = self.image_projection(x)
        return F.normalize(x, dim=-1) if normalize else x

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode texts, or their features, to (B, embed_dim).

        Raises:
            ValueError: the tower, or what stands for it, gives another shape than (B, text_width).
        """
        x = self._features("text", self.text_tower, tokens, self.text_width)
        x = self.text_projection(x)
        return F.normalize(x, dim=-1) if normalize else x

    def image_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the image tower, if there is one."""
        if self.image_tower is not None:
            yield self.image_tower

    def text_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the text tower, if there is one."""
        if self.text_tower is not None:
            yield self.text_tower

    def _features(self, side: str, tower: nn.Module | None, inputs: Tensor, width: int) -> Tensor:
        x = inputs if tower is None else tower(inputs)
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != width:
            what = (
                f"{side}_tower gave"
                if tower is not None
                else f"there is no {side}_tower, and features came as"
            )
            came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{what} {came} where (B, {width}) is expected; set {side}_width, or wrap the tower so that it gives "
                "one vector each (see fastclip.models.Pooled for towers of transformers)"
            )
        return x


class Pooled(nn.Module):
    """Make one vector per row of a transformers model: (B, L) ids, or (B, 3, H, W) pictures, to (B, width).

    Args:
        model: gives `last_hidden_state` (B, L, width).
        pool: "mean" over the tokens (as sentence encoders mostly are), or "first", the class token's.
        pad_id: of texts, the id that stands for nothing: such tokens are masked and not averaged. None: of pictures.
        normalize: divide by the L2 norm.
    """

    def __init__(
        self, model: nn.Module, pool: str = "mean", *, pad_id: int | None = None, normalize: bool = False
    ) -> None:
        super().__init__()
        if pool not in ("mean", "first"):
            raise ValueError(f"pool must be 'mean' or 'first', got {pool!r}")
        self.model, self.pool, self.pad_id, self.normalize = model, pool, pad_id, normalize

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode rows of ids, or pictures."""
        if self.pad_id is None:
            output: Any = self.model(inputs)
            mask = None
        else:
            mask = inputs.ne(self.pad_id)
            output = self.model(inputs, attention_mask=mask.long())
        x = output.last_hidden_state
        if self.pool == "first":
            x = x[:, 0]
        elif mask is None:
            x = x.mean(dim=1)
        else:
            weights = mask.to(x.dtype)[:, :, None]
            x = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
        return F.normalize(x, dim=-1) if self.normalize else x


def _projection(width: int, hidden: int | None, embed_dim: int) -> nn.Module:
    layers = [nn.Linear(width, embed_dim, bias=False)]
    if hidden is not None:
        layers = [nn.Linear(width, hidden), nn.Linear(hidden, embed_dim, bias=False)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if len(layers) == 1:
        return layers[0]
    return nn.Sequential(layers[0], nn.GELU(), layers[1])
