"""The losses as modules, with the constructors and calls that trainers already use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastclip import distributed, validation
from fastclip.functional import clip_loss, info_nce_loss, siglip_loss

#: How open_clip's SigLipLoss moves texts between ranks, and which mode here is like it.
DIST_IMPLS = {"bidir": "ring", "shift": "ring", "reduce": "gather", "gather": "gather"}


class _Loss(nn.Module):
    """What open_clip's modules share: the ranks, fastclip's own options, and the answer to `output_dict`."""

    def __init__(self, rank: int, world_size: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self.options = options

    def _call_options(self) -> dict[str, Any]:
        """Return the options of a call: the group too, where there is one and no option names another."""
        if self.world_size == 1:
            return self.options
        return {"group": distributed.world(self.rank, self.world_size), **self.options}

    def _answer(self, loss: Tensor, output_dict: bool) -> Tensor | dict[str, Tensor]:
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class ClipLoss(_Loss):
    """`fastclip.clip_loss` as a module with open_clip's signature.

    Args:
        rank, world_size: this process's place among the ranks that share a batch, which must be all of them (for
            a part give group=). Every rank gets the loss of the whole batch.
        local_loss, gather_with_grad: as in open_clip, where they trade memory and exactness; here any choice is
            exact: after DDP has averaged them, gradients are those of the whole batch.
        cache_labels: as in open_clip; the labels are never built, so there is nothing to cache.
        use_horovod: as in open_clip; ranks are torch.distributed's in any case.
        options: keyword arguments of `fastclip.clip_loss` for every call (label_smoothing, backend, group, mode, …).

    Raises:
        ValueError: in the call, rank and world_size are not torch.distributed's.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(rank, world_size, options)
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, 0-d, or ``{"contrastive_loss": loss}``; features (M, D) and (N, D), normalised."""
        return self._answer(
            self._contrastive(image_features, text_features, logit_scale, logit_bias), output_dict
        )

    def _contrastive(
        self, x: Tensor, y: Tensor, scale: float | Tensor, bias: float | Tensor | None = None
    ) -> Tensor:
        return clip_loss(x, y, scale, logit_bias=bias, **self._call_options())


class SigLipLoss(_Loss):
    """`fastclip.siglip_loss` as a module with open_clip's signature.

    Args:
        cache_labels, rank, world_size: as in `ClipLoss`.
        dist_impl: as in open_clip: how texts get around. "bidir" and "shift" are mode="ring" here, "reduce" and
            "gather" mode="gather"; all are exact.
        chunk_size: as in open_clip; the loss is computed by blocks whatever it is.
        options: keyword arguments of `fastclip.siglip_loss` for every call (normalize, backend, group, …).

    Raises:
        ValueError: dist_impl is unknown; in the call, rank and world_size are not torch.distributed's.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(rank, world_size, options)
        self.dist_impl = dist_impl or "bidir"
        if self.dist_impl not in DIST_IMPLS:
            known = ", ".join(map(repr, DIST_IMPLS))
            raise ValueError(f"dist_impl must be one of {known}, or None, got {dist_impl!r}")

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, 0-d, or ``{"contrastive_loss": loss}``; features (M, D) and (N, D), normalised."""
        options = {"mode": DIST_IMPLS[self.dist_impl], **self._call_options()}
        loss = siglip_loss(image_features, text_features, logit_scale, logit_bias=logit_bias, **options)
        return self._answer(loss, output_dict)


class NTXentLoss(nn.Module):
    """SimCLR's loss of two views of N samples: each of the 2N rows must find its other view among 2N - 1.

    With ``z = x xᵀ / temperature`` of the 2N unit rows x and p(i) the row of the other view of sample i:
    ``cross_entropy(z[i, j ≠ i], p(i))``, averaged over the rows. (Chen et al., "A Simple Framework for
    Contrastive Learning of Visual Representations", 2020, equation 1.)

    Constructor and call are lightly's. In pytorch-metric-learning the same is
    ``SelfSupervisedLoss(NTXentLoss(temperature))``, or ``NTXentLoss(temperature)(x, labels)`` where each
    label occurs twice.

    Args:
        temperature: divides the cosines.
        memory_bank_size: 0. With a bank of negatives lightly computes another loss, MoCo's.
        gather_distributed: contrast with the samples of all processes, as in lightly; the loss is that of all, and
            gradients are exact after averaging.
        options: keyword arguments of `fastclip.info_nce_loss` for every call (workspace, backend, …).

    Raises:
        ValueError: temperature is not positive, or there is a memory bank.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if (memory_bank_size if isinstance(memory_bank_size, int) else memory_bank_size[0]) != 0:
            raise ValueError(
                f"memory_bank_size must be 0, got {memory_bank_size}: a bank makes it another loss, MoCo's, "
                "which is fastclip.info_nce_loss with the bank as extra keys"
            )
        self.temperature, self.gather_distributed = temperature, gather_distributed
        self.options = options

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss, 0-d. Row i of both feature matrices (N, D) is a view of sample i; any norm."""
        options = self.options
        if self.gather_distributed and _processes() > 1:
            options = {"group": torch.distributed.group.WORLD, **options}
        with distributed.together(options.get("group"), options.get("mode", "gather")) as ranks:
            validation.check_features(("out0", "out1"), out0, out1, shards=ranks is not None)
            validation.check_square("a loss of two views", len(out0), len(out1))
        row = torch.arange(2 * len(out0), device=out0.device)
        if ranks is not None:
            row = row + (ranks.rank << 40)  # no sample of another process shares a label
        # Against the views in the other order each positive is on the diagonal, and row i itself in column
        # i + N: they share a label, and pairs that do are no negatives.
        return info_nce_loss(
            torch.cat([out0, out1]),
            torch.cat([out1, out0]),
            temperature=self.temperature,
            normalize=True,
            labels=(row, row.roll(len(out0))),
            **options,
        )

    def extra_repr(self) -> str:
        options = {"temperature": self.temperature, **self.options}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _processes() -> int:
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if running else 1
