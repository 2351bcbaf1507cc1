"""Step the weights: AdamW with decay where it belongs, and a learning rate that is a function of the step."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.train.checkpoint.ranks import like
from fastclip.train.config import OptimConfig

_BLOCK = re.compile(r"(?P<list>.*?)\.(?P<number>\d+)\.")
_STEM = re.compile(r"(?!.*attnpool)(.*\.)?[^.]*(embedding|conv[123]|bn[123]|patch|stem|ln_pre)(?!.*\.\d+\.)")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Split trainable parameters into groups of one weight decay and one share of the learning rate.

    Matrices and filters decay. Gains, biases, the logit scale and bias do not: pulling those to zero is no
    regularisation, it fights what they are for. Nor do embeddings (of tokens, positions, the class token): a rare
    word's row would be pulled to zero between the few gradients it gets. Numbers without dimensions are a group of
    their own, since FSDP2 does not shard them.
    """
    shares = layer_shares(model, config.layer_decay)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "embedding" not in name
            groups[not decays, not parameter.ndim, shares[name]].append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if free else config.wd, "lr_share": share}
        for (free, _, share), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def layer_shares(model: nn.Module, decay: float | None) -> dict[str, float]:
    """Return of each parameter the share of the learning rate that it gets: decay^(layers above it).

    Of a tower with L blocks the stem and the embeddings lie L + 1 below the head (final norm, pooling, projection),
    block i lies L − i below it; the stages of a ResNet are counted through. Logit scale and bias get all of it, and
    so does everything without decay.
    """
    names = [name for name, _ in model.named_parameters()]
    if decay is None:
        return dict.fromkeys(names, 1.0)
    blocks: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)  # by tower, in the order of the model
    for name in names:
        if match := _BLOCK.match(name):
            of_tower = blocks[_tower(name)]
            of_tower.setdefault((match["list"], match["number"]), len(of_tower))

    def below(name: str) -> int:
        of_tower = blocks[_tower(name)]
        if match := _BLOCK.match(name):
            return len(of_tower) - of_tower[match["list"], match["number"]]
        return len(of_tower) + 1 if _STEM.match(name) else 0

    return {name: decay ** below(name) for name in names}


def _tower(name: str) -> str:
    """Return which tower a parameter belongs to; the text tower's have no prefix in OpenAI's layout."""
    return "image" if name.startswith(("visual.", "image_tower.", "image_")) else "text"


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over `model` in its fused form: one kernel for all tensors."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def warmup_steps(config: OptimConfig, total: int) -> int:
    """Return the steps of warm-up in a run of `total` steps."""
    return min(10_000, total // 20) if config.warmup is None else config.warmup


def learning_rate(step: int, total: int, steps_per_epoch: int, config: OptimConfig) -> float:
    """Return the learning rate of `step` (from 0) out of `total`.

    With `--skip-scheduler` it is lr. Without, linear warm-up lr·(step+1)/warmup, then

        cosine           lr·(1 + cos(π·progress))/2
        const            lr
        const-cooldown   lr, and over the last `--epochs-cooldown` epochs end + (lr − end)·(1 − progress)^power
    """
    if config.skip_scheduler:
        return config.lr
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.lr_scheduler == "const":
        return config.lr
    if config.lr_scheduler == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    length = max(1, round((config.epochs_cooldown or 0.0) * steps_per_epoch))
    left = min(1.0, max(0, total - step) / length)
    end = config.lr_cooldown_end
    return end + (config.lr - end) * left**config.lr_cooldown_power


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the L2 norm of all gradients, 0-d, over all shards of them."""
    norms = [_whole(torch.nn.utils.get_total_norm(grads)).float() for grads in _gradients(parameters)]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients by a number, in place."""
    for grads in _gradients(parameters):
        torch._foreach_mul_(grads, factor)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    """Return the gradients: those that FSDP2 has sharded, and the others; no operation takes both together."""
    lists: dict[type, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            lists[type(parameter.grad)].append(parameter.grad)
    return list(lists.values())


def _whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


class AveragedWeights:
    """Keep an exponential moving average of a model's weights: a ← d·a + (1 − d)·w after every step.

    Early on d is smaller, (1 + n)/(10 + n) after n steps: the average of a short run is not that of its start.

    Args:
        model: whose weights are averaged, in float32.
        decay: d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.weights = {
            name: value.detach().float().clone() if value.is_floating_point() else value.clone()
            for name, value in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in self.model.state_dict().items():
            average = self.weights[name]
            if value.is_floating_point():
                average.mul_(decay).add_(value.float(), alpha=1 - decay)
            else:
                average.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights while the context lasts."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(own)

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take over a saved average, whole, after so many steps."""
        self.steps = steps
        self.weights = {name: like(weights[name], own).clone() for name, own in self.weights.items()}

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew at the model's present weights."""
        self.steps = 0
        for name, value in self.model.state_dict().items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self.model.state_dict().items():
            value.copy_(weights[name])
