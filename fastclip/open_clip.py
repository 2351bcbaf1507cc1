"""open_clip's losses under its own names: ``from fastclip.open_clip import ClipLoss``.

Constructors, calls and the keys of ``output_dict=True`` are those of open_clip 3, so that its training loop,
``loss(**model_out, output_dict=True)``, runs as it is. open_clip itself is not imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastclip.distillation import distill_loss
from fastclip.losses import ClipLoss, SigLipLoss

__all__ = ["ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss"]


class CoCaLoss(ClipLoss):
    """The contrastive loss and the cross-entropy of captions, each with its weight.

    (Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", 2022, equation 4.)

    Args:
        caption_loss_weight, clip_loss_weight: of the two losses; a clip_loss_weight of 0 skips that loss.
        pad_id: the token that counts for nothing in the captions.
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod, options: as in `ClipLoss`.
    """

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod, **options)
        self.clip_loss_weight, self.caption_loss_weight = clip_loss_weight, caption_loss_weight
        self.caption_loss = nn.CrossEntropyLoss(ignore_index=pad_id)

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Return both weighted losses, 0-d: a pair, or ``{"contrastive_loss": …, "caption_loss": …}``.

        Args:
            image_features, text_features, logit_scale: as for `ClipLoss`.
            logits: (B, L, vocabulary), the decoder's.
            labels: (B, L), the tokens it should have said.
        """
        if self.clip_loss_weight:
            contrastive = self._contrastive(image_features, text_features, logit_scale)
            contrastive = self.clip_loss_weight * contrastive
        else:
            contrastive = torch.zeros((), device=logits.device)
        caption = self.caption_loss_weight * self.caption_loss(logits.permute(0, 2, 1), labels)
        if output_dict:
            return {"contrastive_loss": contrastive, "caption_loss": caption}
        return contrastive, caption


class DistillClipLoss(ClipLoss):
    """The contrastive loss, and `fastclip.distill_loss` against a teacher's similarities.

    Arguments are those of `ClipLoss`; of its options, normalize, backend, group and mode hold for the distillation
    too.
    """

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Return both losses, 0-d: a pair, or ``{"contrastive_loss": …, "distill_loss": …}``.

        Args:
            image_features, text_features, logit_scale: the student's, as for `ClipLoss`.
            dist_image_features, dist_text_features, dist_logit_scale: the teacher's, of any width; no
                gradient.
        """
        contrastive = self._contrastive(image_features, text_features, logit_scale)
        names = ("normalize", "backend", "group", "mode")
        shared = {name: value for name, value in self._call_options().items() if name in names}
        student = (image_features, text_features, logit_scale)
        teacher = (dist_image_features, dist_text_features, dist_logit_scale)
        distill = distill_loss(*student, *teacher, **shared)
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill
