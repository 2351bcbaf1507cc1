"""The C++ kernels (csrc/module.cpp). Addresses are `Tensor.data_ptr()` or 0; strides count elements."""

from enum import Enum

class Objective(Enum):
    softmax = 0
    sigmoid = 1
    multi_sigmoid = 2

class Tile:
    def __init__(
        self,
        *,
        products: int,
        stride: int,
        rows: int,
        cols: int,
        diagonal: int,
        row_labels: int,
        col_labels: int,
        scale: float,
        bias: float,
        wide: bool,
    ) -> None: ...

class Sums:
    def __init__(self, shift: int, sum: int) -> None: ...

class Weights:
    def __init__(
        self, *, row_shift: int, row_factor: int, col_shift: int, col_factor: int, positive: int
    ) -> None: ...

def statistics(objective: Objective, tile: Tile, rows: Sums, cols: Sums, threads: int) -> None: ...
def coefficients(
    objective: Objective, tile: Tile, weights: Weights, out: int, out_stride: int, threads: int
) -> tuple[float, float]: ...
def count(tile: Tile, row_bar: int, col_bar: int, row_count: int, col_count: int, threads: int) -> None: ...
def isa() -> str: ...

openmp: bool
