"""What a pair of towers has whatever the towers are: the loss's input, the scale, and freezing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .transformer import Transformer


class Contrastive(nn.Module, ABC):
    """Encode two sides into one space, where matching pairs point the same way.

    A subclass encodes; this class makes of that what a contrastive loss takes.
    """

    MAX_LOG_SCALE = math.log(100)

    @abstractmethod
    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Encode M pictures to (M, embed_dim)."""

    @abstractmethod
    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode N texts to (N, embed_dim)."""

    @abstractmethod
    def image_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield what is frozen as the image tower."""

    @abstractmethod
    def text_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield what is frozen as the text tower."""

    def _build_scale(self, multiplier: float, bias: float | None) -> None:
        self.logit_scale = nn.Parameter(torch.tensor(math.log(multiplier)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self._locked: list[nn.Module] = []

    def forward(self, images: Tensor | None = None, tokens: Tensor | None = None) -> dict[str, Tensor]:
        """Encode both sides, or one of them, for a contrastive loss.

        Args:
            images: M pictures as encode_image takes them.
            tokens: N texts as encode_text takes them.

        Returns:
            image_features (M, embed_dim) and text_features (N, embed_dim), of what was given, of unit length;
            logit_scale, the multiplier (already exponentiated), 0-d; logit_bias, 0-d, where the model has one.

        Raises:
            ValueError: neither side is given.
        """
        if images is None and tokens is None:
            raise ValueError("images and tokens are both None; give at least one of them")
        output = {}
        if images is not None:
            output["image_features"] = self.encode_image(images, normalize=True)
        if tokens is not None:
            output["text_features"] = self.encode_text(tokens, normalize=True)
        output["logit_scale"] = self.logit_scale.exp()
        if self.logit_bias is not None:
            output["logit_bias"] = self.logit_bias
        return output

    def lock(self, image: bool | None = None, text: bool | None = None) -> None:
        """Freeze towers: no gradients, and evaluation mode whatever train() says.

        The weights of a locked tower stay as they are to the last bit, running statistics of batch norms included.
        A CLIP's towers are frozen with their projections; a TwoTower's projections are new and always learn.

        Args:
            image, text: freeze that tower (True), release it (False), or leave it as it is (None).
        """
        for frozen, parts in ((image, self.image_parts()), (text, self.text_parts())):
            for part in parts if frozen is not None else ():
                part.requires_grad_(not frozen)
                if isinstance(part, nn.Module):
                    self._locked = [module for module in self._locked if module is not part]
                    self._locked += [part] if frozen else []
        self.train(self.training)

    def train(self, mode: bool = True) -> Contrastive:
        """Set training or evaluation mode; what is locked stays in evaluation mode."""
        super().train(mode)
        for module in self._locked:
            module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the rest again in the backward pass.

        The gradient is the same; it costs about a third more time and saves most of the towers' memory. A ResNet
        is left as it is, since its batch norms would count every batch twice.
        """
        for module in self.modules():
            if isinstance(module, Transformer):
                module.grad_checkpointing = enable

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Keep the multiplier within [1, 100], in place: after each optimizer step, as CLIP's paper does."""
        self.logit_scale.clamp_(0, self.MAX_LOG_SCALE)
