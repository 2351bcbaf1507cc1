"""One optimizer step: encode, contrast, back-propagate, average over ranks, look at the gradient, move the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import fastclip
from fastclip.grad_cache import cached_backward
from fastclip.train.config import Config
from fastclip.train.distributed import World
from fastclip.train.encoders import Encoders
from fastclip.train.optim import AveragedWeights, gradient_norm, scale_gradients, set_learning_rate
from fastclip.train.precision import LossScaler


@dataclass(frozen=True)
class Inputs:
    """A rank's part of a batch, on the device."""

    images: Tensor  #: uint8 (B, 3, S, S), or features (B, F)
    texts: Tensor  #: token ids (B, L), or features (B, G)
    labels: Tensor  #: int64 (B,)


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    loss: float  #: of the global batch, nats
    gradient_norm: float  #: before clipping
    taken: bool  #: False: loss or gradient were not finite, and the weights are what they were


class Step:
    """Take steps on a model.

    Args:
        config: of the run.
        encoders: the model's, sharded by FSDP2 or whole.
        optimizer: of its parameters.
        world: who else takes the step.
        backend: kernels of the loss.
        scaler: for fp16 gradients.
        averaged: the moving average of the weights, if one is kept.
    """

    def __init__(
        self,
        config: Config,
        encoders: Encoders,
        optimizer: torch.optim.Optimizer,
        world: World,
        backend: str,
        scaler: LossScaler | None,
        averaged: AveragedWeights | None,
    ) -> None:
        self.config, self.encoders, self.optimizer = config, encoders, optimizer
        self.world, self.backend, self.scaler, self.averaged = world, backend, scaler, averaged
        self.parameters = [parameter for parameter in encoders.parameters() if parameter.requires_grad]
        self.sharded = config.run.fsdp and world.size > 1

    def __call__(self, inputs: Inputs, lr: float) -> Outcome:
        """Take one step at learning rate `lr`. All ranks take it, or none does."""
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(inputs)
        norm = self._finish_gradients()
        loss_value, norm_value = torch.stack([loss.double(), norm.double()]).tolist()
        (bad,) = self.world.any(not (math.isfinite(loss_value) and math.isfinite(norm_value)))
        if self.scaler is not None:
            self.scaler.update(finite=not bad)
        if not bad:
            self._move(norm)
        return Outcome(loss_value, norm_value, taken=not bad)

    def _backward(self, inputs: Inputs) -> Tensor:
        """Put the gradient of the global batch's loss into `.grad`; return the loss."""
        return cached_backward(
            lambda image_features, text_features: self._loss(image_features, text_features, inputs.labels),
            (lambda images: self.encoders(images, None), inputs.images),
            (lambda texts: self.encoders(None, texts), inputs.texts),
            micro_batch_size=self.config.data.rows_at_a_time,
            module=self.encoders if self.sharded else None,
            scaler=cast(Any, self.scaler),  # it has the one method that is called
        )

    def _loss(self, image_features: Tensor, text_features: Tensor, labels: Tensor) -> Tensor:
        loss = fastclip.siglip_loss if self.config.loss.siglip else fastclip.clip_loss
        model = self.encoders.model
        return loss(
            image_features,
            text_features,
            model.logit_scale.exp(),
            logit_bias=getattr(model, "logit_bias", None),
            labels=labels,
            normalize=True,
            backend=self.backend,
            group=self.world.group,
            mode=self.config.loss.loss_dist_impl,
        )

    def _finish_gradients(self) -> Tensor:
        """Average gradients over ranks, undo the loss's scaling; return their norm, 0-d."""
        if not self.sharded:
            self.world.average_gradients(self.parameters)
        if self.scaler is not None:
            scale_gradients(self.parameters, 1 / self.scaler.factor)
        return gradient_norm(self.parameters)

    def _move(self, norm: Tensor) -> None:
        largest = self.config.optim.grad_clip_norm
        if largest is not None:
            scale_gradients(self.parameters, (largest / (norm + 1e-6)).clamp(max=1.0).item())
        self.optimizer.step()
        self.encoders.model.clamp_logit_scale_()
        if self.averaged is not None:
            self.averaged.update()
