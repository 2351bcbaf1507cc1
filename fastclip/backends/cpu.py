"""The CPU backend: torch's own matrix product per tile, then a fused C++ epilogue (csrc/cpu).

The epilogue makes exponentials, row and column sums or coefficients in one sweep over a tile that is still in cache,
vectorised for the instruction set found at run time and threaded like torch (`torch.set_num_threads`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip.backends.base import Backend, Block, Problem
from fastclip.objectives import Coefficients, Sums

try:
    from fastclip import _C
except ImportError as error:  # fastclip was installed without a compiler, or the build failed
    _missing: str | None = (
        f"the C++ extension is not there ({error}; `python -m fastclip.info` says more); "
        "reinstall fastclip-kernels with a C++17 compiler"
    )
else:
    _missing = None


class CpuBackend(Backend):
    """float64 in double, everything else in float32 (16-bit features are exact there)."""

    name = "cpu"
    keeps_products = True

    def unavailable_reason(self) -> str | None:
        return _missing

    def unsupported_reason(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "cpu" else f"it runs on CPU tensors, these are on {device}"

    def sums_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64

    def block_shape(self, m: int, n: int) -> tuple[int, int]:
        return 1024, 4096

    def pack_labels(self, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        # Numbered densely, labels fit 32 bits, as wide as a float: they are compared in the same vector registers.
        ids = torch.unique(torch.cat([rows, cols]), return_inverse=True)[1].int()
        return ids[: len(rows)].contiguous(), ids[len(rows) :].contiguous()

    def count_ahead(
        self, similarities: Tensor, row_bar: Tensor, col_bar: Tensor, row_count: Tensor, col_count: Tensor
    ) -> None:
        _C.count(
            _tile(similarities),
            row_bar.data_ptr(),
            col_bar.data_ptr(),
            row_count.data_ptr(),
            col_count.data_ptr(),
            torch.get_num_threads(),
        )

    def positives(self, problem: Problem, dtype: torch.dtype) -> Tensor:
        m, diagonal = len(problem.x), problem.diagonal or 0
        similarity = torch.empty(m, dtype=dtype)
        for start in range(
            0, m, 1024
        ):  # by chunks: the products of all rows at once would be a copy of the features
            rows = slice(start, min(start + 1024, m))
            partners = problem.y.data[rows.start + diagonal : rows.stop + diagonal]
            similarity[rows] = (problem.x.data[rows] * partners).sum(dim=1, dtype=dtype)
        z = similarity * problem.scale
        return z if problem.bias is None else z + problem.bias

    def statistics(
        self, problem: Problem, block: Block, rows: Sums, cols: Sums | None, products: Tensor | None
    ) -> None:
        products = self.similarities(problem.x, problem.y, block, products)
        side = _C.Sums(0, 0) if cols is None else _C.Sums(cols.shift.data_ptr(), cols.sum.data_ptr())
        _C.statistics(
            _objective(problem),
            _problem_tile(problem, block, products),
            _C.Sums(rows.shift.data_ptr(), rows.sum.data_ptr()),
            side,
            torch.get_num_threads(),
        )

    def coefficients(
        self, problem: Problem, block: Block, weights: Coefficients, products: Tensor | None, out: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        if products is None:
            products = self.similarities(
                problem.x, problem.y, block, out
            )  # an epilogue may overwrite its own tile
        positive = weights.positive
        return _C.coefficients(
            _objective(problem),
            _problem_tile(problem, block, products),
            _C.Weights(
                row_shift=weights.row_shift[block.rows].data_ptr(),
                row_factor=weights.row_factor[block.rows].data_ptr(),
                col_shift=weights.col_shift[block.cols].data_ptr(),
                col_factor=weights.col_factor[block.cols].data_ptr(),
                positive=0 if positive is None else positive[block.rows].data_ptr(),
            ),
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )


def _objective(problem: Problem) -> _C.Objective:
    return getattr(_C.Objective, problem.objective.value)


def _problem_tile(problem: Problem, block: Block, products: Tensor) -> _C.Tile:
    rows, _ = block.shape
    # Outside every tile where rows have no positive.
    diagonal = (
        -rows - 1 if problem.diagonal is None else problem.diagonal + block.rows.start - block.cols.start
    )
    labels = [
        0 if ids is None else ids[part].data_ptr()
        for ids, part in ((problem.row_labels, block.rows), (problem.col_labels, block.cols))
    ]
    return _tile(
        products,
        diagonal=diagonal,
        row_labels=labels[0],
        col_labels=labels[1],
        scale=float(problem.scale),
        bias=0.0 if problem.bias is None else float(problem.bias),
    )


def _tile(
    products: Tensor,
    diagonal: int = 0,
    row_labels: int = 0,
    col_labels: int = 0,
    scale: float = 1.0,
    bias: float = 0.0,
) -> _C.Tile:
    return _C.Tile(
        products=products.data_ptr(),
        stride=products.stride(0),
        rows=products.shape[0],
        cols=products.shape[1],
        diagonal=diagonal,
        row_labels=row_labels,
        col_labels=col_labels,
        scale=scale,
        bias=bias,
        wide=products.dtype == torch.float64,
    )
