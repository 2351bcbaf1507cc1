"""In which arithmetic a model is trained: the names of `--precision`, autocast, and the scaling that fp16 needs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

#: open_clip's other names for what is the same here.
ALIASES = {"amp": "amp_fp16", "fp16": "amp_fp16", "amp_bfloat16": "amp_bf16", "bf16": "pure_bf16"}

_AUTOCAST = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}


def resolve(name: str, device: torch.device) -> str:
    """Return what `--precision` means: one of fp32, amp_bf16, amp_fp16, pure_bf16.

    "auto" is bfloat16 autocast on a GPU and float32 on a CPU.
    """
    if name == "auto":
        return "fp32" if device.type == "cpu" else "amp_bf16"
    return ALIASES.get(name, name)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which encoders run."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    return contextlib.nullcontext()


def convert(model: nn.Module, precision: str) -> None:
    """Give a model's weights the dtype they are trained in, in place.

    Numbers by themselves, such as the logit scale, stay in float32: bfloat16 has no value between 4.59 and 4.61.
    """
    if precision == "pure_bf16":
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim and tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16()


class LossScaler:
    """Multiply a loss so that its float16 gradients do not vanish, by as much as they can take.

    The factor is halved when a gradient overflows, and that step is left out; it is doubled after `interval` steps
    in a row without one. (torch.amp.GradScaler's rule. That class looks for overflows by itself; here the step does, on
    all ranks together.)
    """

    def __init__(self, scale: float = 2.0**16, interval: int = 2000) -> None:
        self.factor, self.interval, self.good_steps = scale, interval, 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to back-propagate."""
        return loss * self.factor

    def update(self, finite: bool) -> None:
        """Learn whether the last gradients were finite."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.good_steps == self.interval:
            self.factor, self.good_steps = self.factor * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved run's state."""
        self.factor, self.good_steps = float(state["factor"]), int(state["good_steps"])
