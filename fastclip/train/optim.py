"""Step the weights: AdamW with decay where it belongs, and a learning rate that is a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastclip.train.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters in two groups: matrices and filters decay; everything else does not.

    Gains, biases, the logit scale and bias: pulling those to zero is no regularisation, it fights what they are for.
    Embeddings (of tokens, positions, the class token): a rare word's row would be pulled to zero between the few
    gradients it gets.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decay if parameter.ndim >= 2 and "embedding" not in name else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over `model` in its fused form: one kernel for all tensors."""
    return torch.optim.AdamW(
        parameter_groups(model, config.wd),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def warmup_steps(config: OptimConfig, total: int) -> int:
    """Return the steps of warm-up in a run of `total` steps."""
    return min(10_000, total // 20) if config.warmup is None else config.warmup


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the learning rate of `step` (from 0) out of `total`.

    Linear warm-up lr·(step+1)/warmup, then lr·(1 + cos(π·progress))/2, or lr throughout for "const".
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.lr_scheduler == "const":
        return config.lr
    progress = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
