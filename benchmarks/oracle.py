"""Hold losses against float64 at sizes where a GPU's main kernels run: questions, and how wrong an answer may be.

The bounds are those of tests/acceptance.py, over a sample of rows and columns: their statistics depend on every entry
of the matrix, so an error anywhere shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip
from benchmarks.cases import Inputs
from fastclip import blockwise
from fastclip.backends import Block, Problem, get_backend
from fastclip.backends.base import Packed
from fastclip.objectives import Coefficients, Objective

#: c of the contract, by dtype: a gradient's relative L2 error beside float32's own.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}

#: Rows and columns in a sample's run, and how many such runs there are.
RUN, RUNS = 64, 4


@dataclass(frozen=True)
class Finding:
    """One number held against its bound; `share` is the part of the bound that it used up."""

    name: str
    share: float

    @property
    def passed(self) -> bool:
        """Return whether the bound holds; not for NaN."""
        return self.share <= 1


@dataclass(frozen=True)
class Question:
    """A loss over (M, D) and (N, D) features of some kind.

    Attributes:
        features: "pairs" (related), "far" (a row points away from all: its sums need the repair), "fitted" (positives
            lead by 12 nats), "norms" (from 1e-2 to 1e3, normalised by the loss).
    """

    objective: str
    m: int
    n: int
    d: int
    dtype: torch.dtype
    scale: float = 1 / 0.07
    diagonal: int = 0
    features: str = "pairs"

    @property
    def label(self) -> str:
        """Return the question in words."""
        dtype = str(self.dtype).removeprefix("torch.")
        size = f"N = {self.n:,}" if self.m == self.n else f"{self.m:,} x {self.n:,}"
        return f"{self.objective}, {size}, D = {self.d}, {dtype}, scale {self.scale:.4g}, {self.features}"

    @property
    def normalize(self) -> bool:
        """Return whether the loss normalises."""
        return self.features == "norms"

    def inputs(self, device: str) -> Inputs:
        """Draw the features."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int) -> Tensor:
            return torch.randn(rows, self.d, generator=generator, device=device)

        y = F.normalize(normal(self.n), dim=1)
        own = y[self.diagonal : self.diagonal + self.m]
        if self.features == "far":
            common = F.normalize(normal(1), dim=1)
            y = F.normalize(common + 0.1 * y, dim=1)
            x = y[self.diagonal : self.diagonal + self.m].clone()
            x[self.m // 3] = -common[0]
        elif self.features == "fitted":
            shared = 12 / self.scale
            y = F.normalize((1 - shared) ** 0.5 * F.normalize(normal(1), dim=1) + shared**0.5 * y, dim=1)
            own = y[self.diagonal : self.diagonal + self.m]
            x = F.normalize(own + 0.05 * shared**0.5 * F.normalize(normal(self.m), dim=1), dim=1)
        else:
            x = F.normalize(own + 3.0 / self.d**0.5 * normal(self.m), dim=1)
        if self.normalize:
            x = x * torch.logspace(-2, 3, self.m, device=device)[:, None]
        bias = torch.tensor(-10.0, device=device, requires_grad=True) if self.objective == "siglip" else None
        return Inputs(
            x.to(self.dtype).requires_grad_(),
            y.to(self.dtype).requires_grad_(),
            torch.tensor(self.scale, device=device, requires_grad=True),
            bias,
        )

    def loss(self, inputs: Inputs, backend: str) -> Tensor:
        """Compute the loss on a backend."""
        x, y, scale, bias = inputs
        more: dict = {} if bias is None else {"logit_bias": bias}
        more |= {"normalize": self.normalize, "diagonal": self.diagonal, "backend": backend}
        return _LOSSES[self.objective](x, y, scale, **more)


#: Looked up when called: a test puts wrong ones in their place.
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip": lambda *inputs, **options: fastclip.clip_loss(*inputs, **options),
    "siglip": lambda *inputs, **options: fastclip.siglip_loss(*inputs, **options),
    "info_nce": lambda *inputs, **options: fastclip.info_nce_loss(*inputs, **options),
}

_BF16, _F16, _F32 = torch.bfloat16, torch.float16, torch.float32

#: Every path of the main kernels at least once, and the sizes that they are for.
QUESTIONS = (
    Question("clip", 4096, 4096, 512, _BF16),
    Question("clip", 4000, 4500, 512, _BF16, 100.0, diagonal=300),
    Question("clip", 4096, 4096, 512, _F16, 100.0, features="far"),
    Question("clip", 4096, 4096, 512, _F32, 100.0, features="fitted"),
    Question("clip", 5000, 5000, 520, _BF16, features="norms"),
    Question("info_nce", 3000, 9000, 512, _F32, diagonal=2000),
    Question("siglip", 4096, 4096, 768, _BF16, 10.0),
    Question("siglip", 4000, 4500, 512, _F32, 10.0, diagonal=100),
    Question("clip", 65536, 65536, 512, _BF16),
    Question("clip", 40000, 65536, 1024, _F32, diagonal=20000),
    Question("siglip", 65536, 65536, 512, _BF16, 10.0),
)


def solved(question: Question, device: str = "cuda", backend: str = "triton") -> list[Finding]:
    """Hold a backend's answer against float64.

    Rows r of the sample: ``||O - X||_r <= (2 e32row + 8c) ||X||_r``; all of it: ``||O - X|| <= (2 e32 + c) ||X||``,
    with X the exact gradient and e32 what plain float32 is wrong by. With z the largest logit's magnitude, the loss may
    be wrong by ``2^-21 max(1, z + ln N, X)`` and dscale by ``2^-22 max(1, z) sum|G|``.
    """
    inputs = question.inputs(device)
    loss = question.loss(inputs, backend)
    loss.backward()
    exact = _Solution(question, inputs, torch.float64)
    rough = _Solution(question, inputs, torch.float32, exact.weights)
    z = abs(question.scale) + (10.0 if inputs.logit_bias is not None else 0.0)
    limit = 2.0**-21 * max(1.0, z + math.log(question.n), float(exact.loss))
    findings = [Finding("loss", abs(float(loss) - float(exact.loss)) / limit)]
    c = ROUNDING[question.dtype]
    for name, gradient in (("dx", inputs.image_features.grad), ("dy", inputs.text_features.grad)):
        parts = _runs(question.m if name == "dx" else question.n)
        right = torch.cat([exact.gradient(name, part) for part in parts])
        plain = torch.cat([rough.gradient(name, part) for part in parts]).double()
        ours = torch.cat([gradient[part] for part in parts]).double()  # type: ignore[index]
        error, size = (ours - right).norm(dim=1), right.norm(dim=1)
        e32 = (plain - right).norm(dim=1)
        rows = error / ((2 * (e32 / size).nan_to_num().max() + 8 * c) * size).clamp_min(1e-30)
        findings.append(Finding(f"{name}, worst row", float(rows.max())))
        whole = error.norm() / (2 * e32.norm() + c * size.norm()).clamp_min(1e-30)
        findings.append(Finding(f"{name}, whole", float(whole)))
    dscale, g_sum = exact.sums()
    error = abs(float(inputs.logit_scale.grad) - dscale)  # type: ignore[arg-type]
    findings.append(Finding("dscale", error / (2.0**-22 * max(1.0, z) * max(g_sum, 1e-3))))
    return findings


class _Solution:
    """The reference backend's answer in a dtype, gradients a few rows or columns at a time."""

    def __init__(
        self, question: Question, inputs: Inputs, dtype: torch.dtype, weights: Coefficients | None = None
    ) -> None:
        self.reference, self.dtype, self.question = get_backend("reference"), dtype, question
        x, y, scale, bias = (None if t is None else t.detach().to(dtype) for t in inputs)
        objective = Objective.SIGMOID if question.objective == "siglip" else Objective.SOFTMAX
        self.problem: Problem = blockwise.pose(
            *(self.reference, x, y, scale, bias, None, objective, question.normalize, question.diagonal)  # type: ignore[arg-type]
        )
        self.columns = question.objective == "clip"
        self.loss = torch.zeros(())
        self.weights = _cast(weights, dtype) if weights is not None else self._weights()

    def _weights(self) -> Coefficients:
        statistics = blockwise.statistics(
            self.reference, self.problem, self.dtype, columns=self.columns, keep=0
        )
        row, col = blockwise.values(self.problem, statistics)
        m = self.question.m
        share = 1 / (2 * m) if self.columns else 1 / m
        self.loss = share * (row.sum() + (0 if col is None else col.sum()))
        grad = torch.full((m,), share, dtype=self.dtype, device=row.device)
        col_grad = None if col is None else grad.new_full((self.question.n,), share)
        return self.reference.weigh(
            self.problem, statistics.rows, statistics.cols, statistics.positive, grad, col_grad
        )

    def coefficients(self, block: Block) -> tuple[Tensor, Tensor | float]:
        """Return G of a block, and its sum of G * S."""
        g = torch.empty(block.shape, dtype=self.dtype, device=self.problem.x.data.device)
        gs, _ = self.reference.coefficients(self.problem, block, self.weights, None, g)
        return g, gs

    def gradient(self, name: str, part: slice) -> Tensor:
        """Return rows of dx, or of dy."""
        x, y = self.problem.x, self.problem.y
        own: Packed
        if name == "dx":
            g, own, others = self.coefficients(Block(part, slice(0, len(y))))[0], x, y
        else:
            g, own, others = self.coefficients(Block(slice(0, len(x)), part))[0].T, y, x
        return self.reference.finish(
            g @ others.data, own[part], others, self.weights, self.problem.scale, self.dtype
        )

    def sums(self) -> tuple[float, float]:
        """Return the sums of G * S and of |G| over the whole matrix."""
        gs_sum, g_sum = 0.0, 0.0
        for block in blockwise.blocks(self.reference, len(self.problem.x), len(self.problem.y)):
            g, gs = self.coefficients(block)
            gs_sum += float(gs)
            g_sum += float(g.abs().sum())
        return gs_sum, g_sum


def _cast(weights: Coefficients, dtype: torch.dtype) -> Coefficients:
    return Coefficients(
        row_shift=weights.row_shift.to(dtype),
        row_factor=weights.row_factor.to(dtype),
        col_shift=weights.col_shift.to(dtype),
        col_factor=weights.col_factor.to(dtype),
        positive=None if weights.positive is None else weights.positive.to(dtype),
    )


def _runs(count: int) -> list[slice]:
    """Return slices of neighbouring rows, from first to last."""
    if count <= RUN * RUNS:
        return [slice(0, count)]
    starts = [round(i * (count - RUN) / (RUNS - 1)) for i in range(RUNS)]
    return [slice(start, start + RUN) for start in starts]
