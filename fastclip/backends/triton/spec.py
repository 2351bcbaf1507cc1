"""What kernels are told: the kind of problem, fixed when they are compiled, and the pointers that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
#: The shift of an empty sum: finite, so that the difference of two is 0.
EMPTY = tl.constexpr(-1e30)
#: The second half of a coefficient is stored times 2^11, so that it is as far from underflow as the first.
LO_POWER = tl.constexpr(2048.0)


@dataclass(frozen=True)
class Spec:
    """What is fixed when a kernel is compiled: the kind of problem, and the tile."""

    width: int  # D, padded
    halves: int  # 1, or 2: hi | lo, three products
    factors: bool  # multiply products by a factor per row and per column
    objective: str  # "softmax", "sigmoid" or "multi_sigmoid"
    columns: bool  # columns have sums (forward), coefficients (backward)
    diagonal: bool  # row i's positive is column i + diagonal
    labels: bool  # entries with equal labels are no negatives (multi_sigmoid: they are positives)
    bias: bool  # the sum of G is wanted
    exact: bool = False  # coefficients are stored in fp32, not in as many fp16 halves as the operands
    fragments: bool = (
        True  # a warp's threads hold two rows of every 16 of a product (not so on compute capability 10)
    )
    tma: bool = False  # operands (and the main kernel's output) are tensor descriptors, not pointers
    guard: str = ""  # "flagged", "clear": do nothing unless some flag, or no flag, is set
    teacher: Spec | None = None  # distillation: whose coefficients are subtracted
    edges: int = 0  # BLOCK_N of the main coefficient kernel: only what that leaves out; 0: everything
    block_m: int = 128
    block_n: int = 128
    block_d: int = 64
    group: int = 8  # rows of tiles, or strips in strip_statistics, done side by side

    @property
    def slots(self) -> int:
        """Return how many programs edge_statistics has for a whole strip: tiles on the diagonal, ragged, marked."""
        return self.block_n // self.block_m + 2 + self.labels

    @property
    def pieces(self) -> int:
        """Return in how many pieces the main kernel writes a tile's coefficients: as few as no registers are spilt at.

        Found by compiling (tests/backends/test_triton_compile.py).
        """
        if self.halves == 2:
            return 2 if self.tma and self.objective == "sigmoid" else 4
        return 4 if self.tma and self.factors and self.labels and self.objective == "sigmoid" else 2


class Side(NamedTuple):
    """What belongs to the rows (or columns): pointers, None where the spec has no use for them."""

    factor: Any
    labels: Any


class Place(NamedTuple):
    """A block: its first row and column, where it ends, and the diagonal (of the whole matrix)."""

    row: Any
    col: Any
    row_end: Any
    col_end: Any
    diagonal: Any


class Flags(NamedTuple):
    """int32 numbers, any of which may say that the main kernels' result must not be used; None: there are none."""

    at: Any
    count: Any


class Marks(NamedTuple):
    """int8 (rows of tiles, stride) of the whole matrix: 1 where a tile has equal labels off the diagonal."""

    at: Any
    stride: Any


class Weights(NamedTuple):
    """Pointers to the coefficients' ingredients, times their power of two; shifts are whole numbers (log2 units).

    ``*_shifted``: ``factor 2^-shift``, for the main kernel, where one exponential serves both sides.
    """

    row_shift: Any
    row_factor: Any
    row_shifted: Any
    col_shift: Any
    col_factor: Any
    col_shifted: Any
    positive: Any


class Teacher(NamedTuple):
    """What else distillation reads: the teacher's problem; place and tiles are the student's."""

    x: Any
    y: Any
    row_side: Any
    col_side: Any
    logit: Any
    weights: Any


class Pair(NamedTuple):
    """Pointers to shifts and sums."""

    shift: Any
    sum: Any


class Stats(NamedTuple):
    """Pointers to the running statistics (float64) and to the values' upstream gradients; None where there are none."""

    row: Any
    col: Any
    positive: Any
    row_grad: Any
    col_grad: Any
