"""Drop-in modules: the losses with the constructor and call that open_clip's trainers use."""

from __future__ import annotations

from torch import Tensor, nn

from fastclip.functional import clip_loss, siglip_loss


class _Loss(nn.Module):
    """What both modules share: fastclip's own options, and the answer to `output_dict`."""

    def __init__(self, world_size: int, options: dict) -> None:
        super().__init__()
        if world_size != 1:
            raise ValueError(f"world_size must be 1, got {world_size}: this version computes the loss of one process")
        self.options = options

    def _answer(self, loss: Tensor, output_dict: bool) -> Tensor | dict[str, Tensor]:
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class ClipLoss(_Loss):
    """`fastclip.clip_loss` as a module with open_clip's signature.

    Args:
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: as in open_clip; one process.
        options: keyword arguments of `fastclip.clip_loss` for every call (normalize, label_smoothing, backend, …).
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        **options: object,
    ) -> None:
        super().__init__(world_size, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, 0-d, or ``{"contrastive_loss": loss}``. Features (M, D) and (N, D), usually normalised."""
        loss = clip_loss(image_features, text_features, logit_scale, logit_bias=logit_bias, **self.options)
        return self._answer(loss, output_dict)


class SigLipLoss(_Loss):
    """`fastclip.siglip_loss` as a module with open_clip's signature.

    Args:
        cache_labels, rank, world_size, dist_impl: as in open_clip; one process.
        options: keyword arguments of `fastclip.siglip_loss` for every call (normalize, backend, …).
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        **options: object,
    ) -> None:
        super().__init__(world_size, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, 0-d, or ``{"contrastive_loss": loss}``. Features (M, D) and (N, D), usually normalised."""
        loss = siglip_loss(image_features, text_features, logit_scale, logit_bias=logit_bias, **self.options)
        return self._answer(loss, output_dict)
