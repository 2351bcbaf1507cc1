"""The Triton backend: tile kernels for CUDA, and for the CPU through Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastclip.backends.base import Backend, Block, Packed, Problem
from fastclip.objectives import Coefficients, Sums

#: The oldest Triton known to compile the kernels for compute capability 10; 3.6 does not.
FOR_BLACKWELL = (3, 9)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonBackend(Backend):
    """Packed fp16 operands, fp32 accumulation, statistics in double precision. Triton is imported at the first use."""

    name = "triton"

    def unavailable_reason(self) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed (pip install triton; it exists for Linux only)"
        if _interpreted():
            return None
        if not torch.cuda.is_available() or torch.version.cuda is None:
            return (
                "there is no CUDA GPU (TRITON_INTERPRET=1, set before Triton is imported, runs it on the CPU)"
            )
        # Some GPU; whether it is the features' own is for `unsupported_reason`.
        reasons = [_obstacle_of(device) for device in range(torch.cuda.device_count())]
        return reasons[0] if reasons and all(reasons) else None

    def unsupported_reason(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype not in DTYPES:
            return f"it takes float32, bfloat16 and float16 features, these are {dtype}"
        wanted = "cpu" if _interpreted() else "cuda"
        if device.type != wanted:
            return f"it runs on {wanted} tensors here, these are on {device}"
        return None if wanted == "cpu" else _obstacle_of(device)

    def sums_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64  # O(M + N) of them: precision costs nothing

    def block_shape(self, m: int, n: int) -> tuple[int, int]:
        return 8192, 32768

    def statistics_shape(self, problem: Problem) -> tuple[int, int]:
        return _module("plan").plan_for(problem).statistics_block

    def coefficients_shape(self, problem: Problem) -> tuple[int, int]:
        return _module("plan").plan_for(problem).coefficients_block

    def pack(self, features: Tensor, normalize: bool) -> Packed:
        return _module("pack").pack(features, normalize)

    def similarities(self, x: Packed, y: Packed, block: Block, out: Tensor | None = None) -> Tensor:
        return _module("products").similarities(x, y, block, out)

    def positives(self, problem: Problem, dtype: torch.dtype) -> Tensor:
        return _module("forward").positives(problem)

    def statistics(
        self, problem: Problem, block: Block, rows: Sums, cols: Sums | None, products: Tensor | None
    ) -> None:
        _module("forward").statistics(problem, block, rows, cols)

    def values(
        self, problem: Problem, rows: Sums, cols: Sums | None, positive: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return _module("forward").values(problem, rows, cols, positive)

    def weigh(
        self,
        problem: Problem,
        rows: Sums,
        cols: Sums | None,
        positive: Tensor | None,
        row_grad: Tensor,
        col_grad: Tensor | None,
    ) -> Coefficients:
        return _module("backward").weigh(problem, rows, cols, positive, row_grad, col_grad)

    def scratch(self, problem: Problem, rows: int, cols: int) -> Tensor:
        return _module("backward").scratch(problem, rows, cols)

    def scratch_of(self, memory: Tensor, block: Block) -> Tensor:
        rows, cols = block.shape
        return memory[:, :rows, :cols]

    def coefficients(
        self, problem: Problem, block: Block, weights: Coefficients, products: Tensor | None, out: Tensor
    ) -> Any:
        return _module("backward").coefficients(problem, block, weights, out)

    def difference(
        self,
        student: Problem,
        teacher: Problem,
        block: Block,
        weights: tuple[Coefficients, Coefficients],
        out: Tensor | None,
    ) -> Any:
        return _module("backward").difference(student, teacher, block, weights, out)

    def totals(self, problem: Problem, weights: Coefficients, parts: list[Any]) -> tuple[Any, Any]:
        return tuple(_module("backward").total(problem, weights, parts))

    def add_product(
        self, total: Tensor, coefficients: Tensor, packed: Packed, part: slice, fresh: bool = False
    ) -> None:
        _module("products").add_gradient(total, coefficients, packed, part, fresh=fresh)

    def finish(
        self,
        total: Tensor,
        packed: Packed,
        partner: Packed,
        weights: Coefficients,
        scale: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        return _module("products").finish(total, packed, partner, weights.power, scale, dtype)


def _obstacle_of(device: int | torch.device) -> str | None:
    """Say why kernels cannot run on a GPU, or None if they can."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 (Ampere) or newer, this GPU has {major}.{minor}"
    installed = _installed()
    if major == 10 and installed < FOR_BLACKWELL:
        found, needed = (".".join(map(str, each)) for each in (installed, FOR_BLACKWELL))
        return f"Triton {found} does not compile it for compute capability {major}.{minor}, {needed} does"
    return None


def _installed() -> tuple[int, ...]:
    """Return Triton's version, major and minor, from the metadata: importing it only to ask would take a second."""
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:  # a build of its own, under another name
        return FOR_BLACKWELL


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _module(name: str) -> ModuleType:
    """Return a module of this package; all of them import Triton, which nobody pays for who does not use it."""
    return import_module(f"fastclip.backends.triton.{name}")
