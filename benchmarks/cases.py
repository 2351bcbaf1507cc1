"""What is measured: a loss and its gradients over one set of inputs. Declared here once, for every command.

A case is an objective, N pairs of D features, a dtype and a device; `benchmarks/contenders.py` says who runs
it. Its work is counted as 8 N² D FLOPs, the least that is exact without keeping the similarity matrix: one
product forward, three backward (the similarities again, and the two gradients).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

OBJECTIVES = ("softmax", "sigmoid")

#: How far apart the features of a pair are: a cosine of about 0.3, as in a CLIP halfway through its training.
NOISE = 3.0


@dataclass(frozen=True)
class Case:
    """One problem: N pairs of D features under an objective ("softmax": CLIP, "sigmoid": SigLIP)."""

    objective: str
    n: int
    d: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def flops(self) -> int:
        """Return the floating-point operations of forward and backward pass, 8 N² D."""
        return 8 * self.n**2 * self.d

    @property
    def dtype_name(self) -> str:
        """Return "float32" for torch.float32."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def label(self) -> str:
        """Return the case in words, for headings."""
        return f"{self.objective}, N = {self.n:,}, D = {self.d}, {self.dtype_name}"

    def to_dict(self) -> dict[str, str | int]:
        """Return the case as plain JSON types."""
        return {
            "objective": self.objective,
            "n": self.n,
            "d": self.d,
            "dtype": self.dtype_name,
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, fields: dict) -> Case:
        """Return the case that `to_dict` described."""
        return cls(**{**fields, "dtype": getattr(torch, fields["dtype"])})

    def of_size(self, n: int) -> Case:
        """Return the same case with another number of pairs."""
        return replace(self, n=n)

    def inputs(self, seed: int = 0) -> Inputs:
        """Draw the inputs of this case, the same for every contender: unit rows whose partners resemble them.

        The softmax has CLIP's initial scale 1/0.07, the sigmoid SigLIP's initial scale 10 and bias -10.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        x, noise = torch.randn(2, self.n, self.d, generator=generator, device=self.device)
        x = F.normalize(x, dim=1)
        y = F.normalize(x + noise.mul_(NOISE / self.d**0.5), dim=1)
        scale, bias = (10.0, -10.0) if self.objective == "sigmoid" else (1 / 0.07, None)
        return Inputs(
            x.to(self.dtype).requires_grad_(),
            y.to(self.dtype).requires_grad_(),
            torch.tensor(scale, device=self.device, requires_grad=True),
            None if bias is None else torch.tensor(bias, device=self.device, requires_grad=True),
        )


@dataclass
class Inputs:
    """Leaf tensors: features (N, D), the multiplier (0-d, float32) and the sigmoid's bias (0-d, float32)."""

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.image_features, self.text_features, self.logit_scale, self.logit_bias))

    def double(self) -> Inputs:
        """Return the same numbers as float64 leaves: what an exact loss is computed from."""
        x, y, scale, bias = (None if t is None else t.detach().double().requires_grad_() for t in self)
        return Inputs(x, y, scale, bias)  # type: ignore[arg-type]

    def clear_gradients(self) -> None:
        """Free the gradients of the last step, as `optimizer.zero_grad()` does."""
        for tensor in self:
            if tensor is not None:
                tensor.grad = None


@dataclass(frozen=True)
class Series:
    """Cases that differ in N alone: one curve per contender."""

    objective: str
    d: int
    dtype: torch.dtype
    sizes: tuple[int, ...]

    def cases(self, device: str) -> list[Case]:
        """Return the cases, smallest first."""
        return [Case(self.objective, n, self.d, self.dtype, device) for n in sorted(self.sizes)]


_F32, _BF16 = torch.float32, torch.bfloat16

#: What a command measures at `--suite NAME`. Times are for two quiet cores.
SUITES: dict[str, tuple[Series, ...]] = {
    # For tests of the tools themselves: a second.
    "tiny": (Series("softmax", 16, _F32, (32, 64)), Series("sigmoid", 16, _F32, (32,))),
    # For `pytest benchmarks/`: a minute or two.
    "brief": (
        Series("softmax", 512, _F32, (512, 1024)),
        Series("softmax", 512, _BF16, (512,)),
        Series("sigmoid", 512, _F32, (1024,)),
    ),
    # For `make bench`: two minutes.
    "quick": (
        Series("softmax", 512, _F32, (512, 1024, 2048)),
        Series("sigmoid", 512, _F32, (512, 1024, 2048)),
    ),
    # A quarter of an hour.
    "default": (
        Series("softmax", 512, _F32, (1024, 2048, 4096, 8192)),
        Series("sigmoid", 512, _F32, (1024, 2048, 4096, 8192)),
        Series("softmax", 512, _BF16, (1024, 2048, 4096)),
    ),
    # Two hours; half an hour with --only "fastclip cpu".
    "large": (
        Series("softmax", 512, _F32, (8192, 16384, 32768)),
        Series("softmax", 256, _F32, (65536,)),
    ),
}

#: Seconds that a step of a suite may take, where not 20.
PATIENCE = {"large": 200.0}
