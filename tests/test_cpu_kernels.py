"""The C++ kernels by themselves: every instruction set, accuracy of their functions, tile edges, threads."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.regimes import normal

pytestmark = pytest.mark.usefixtures("poisoned_memory")

_C = pytest.importorskip("fastclip._C", reason="the C++ extension is not there")

ROOT = Path(__file__).parents[1]
EXCLUDED = -1e30
LEVELS = ("baseline", "avx2", "avx512")

# Cells are 32 x 1024: sizes around their edges, and several of them.
SIZES = [(1, 1), (1, 1025), (31, 7), (32, 1024), (33, 1023), (40, 2049), (100, 3)]


class Tile:
    """One call's memory: a tile of products in the middle of a larger matrix, and where its positives are."""

    def __init__(
        self, products: Tensor, scale: float = 1.0, bias: float = 0.0, diagonal: int | None = None
    ) -> None:
        rows, cols = products.shape
        self.memory = torch.full((rows, cols + 5), torch.nan, dtype=products.dtype)
        self.memory[:, :cols] = products
        self.rows, self.cols, self.diagonal = rows, cols, diagonal
        self.z = scale * products.double() + bias
        self.tile = _C.Tile(
            products=self.memory.data_ptr(),
            stride=self.memory.stride(0),
            rows=rows,
            cols=cols,
            diagonal=-rows - 1 if diagonal is None else diagonal,
            row_labels=0,
            col_labels=0,
            scale=scale,
            bias=bias,
            wide=products.dtype == torch.float64,
        )

    def negatives(self) -> Tensor:
        """Return the logits (rows, cols) in float64, -inf on the positives."""
        positive = torch.zeros(self.rows, self.cols, dtype=torch.bool)
        if self.diagonal is not None:
            positive = torch.arange(self.cols) == torch.arange(self.rows)[:, None] + self.diagonal
        return self.z.masked_fill(positive, -torch.inf)

    def statistics(self, objective: str = "softmax", threads: int = 1) -> list[Tensor]:
        """Return (row shift, row sum, column shift, column sum)."""
        sizes = (self.rows, self.rows, self.cols, self.cols)
        sums = [
            torch.full((n,), fill, dtype=torch.float64)
            for n, fill in zip(sizes, (EXCLUDED, 0) * 2, strict=True)
        ]
        row, col = (_C.Sums(sums[i].data_ptr(), sums[i + 1].data_ptr()) for i in (0, 2))
        _C.statistics(getattr(_C.Objective, objective), self.tile, row, col, threads)
        return sums

    def coefficients(
        self, weights: list[Tensor], objective: str = "softmax", threads: int = 1
    ) -> tuple[Tensor, tuple[float, float]]:
        """Return G (rows, cols) and the sums of G P and of G; `weights` are shift and factor of rows and columns."""
        out = torch.empty(self.rows, self.cols, dtype=self.memory.dtype)
        names = ("row_shift", "row_factor", "col_shift", "col_factor")
        addresses = {name: weight.data_ptr() for name, weight in zip(names, weights, strict=True)}
        totals = _C.coefficients(
            getattr(_C.Objective, objective),
            self.tile,
            _C.Weights(**addresses, positive=0),
            out.data_ptr(),
            out.stride(0),
            threads,
        )
        return out, totals


def weights_of(tile: Tile) -> list[Tensor]:
    """Return weights that make G the softmax over rows plus the softmax over columns."""
    z = tile.negatives()
    rows, cols = z.logsumexp(dim=1), z.logsumexp(dim=0)
    return [
        rows.nan_to_num(neginf=0),
        torch.ones(tile.rows, dtype=torch.float64),
        cols.nan_to_num(neginf=0),
        torch.ones(tile.cols, dtype=torch.float64),
    ]


def log_sum_exp(shift: Tensor, total: Tensor) -> Tensor:
    return shift + total.log()


# Instruction sets

CHECK = """
import json, torch
from fastclip import _C
from tests.formulas import fused
from tests.regimes import judge
torch.set_num_threads(1)
names = ["M < N, positives inside", "scale 1e4", "fits, margin 12", "two clusters", "one row apart", "labels, M < N"]
found = []
for name in [*names, "far columns"]:
    for objective in ("clip", "siglip"):
        for dtype in (torch.float32, torch.float64):
            judged = judge(objective, name, dtype)
            found += [(objective, name, str(dtype), v) for v in judged.violations(judged.run(fused("cpu")))]
for objective in ("info_nce", "siglip_multi"):
    judged = judge(objective, "labels, M < N", torch.float32)
    found += [(objective, v) for v in judged.violations(judged.run(fused("cpu")))]
print(json.dumps({"isa": _C.isa(), "violations": found}))
"""


#: The extension alone, which needs no torch.
ISA = f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("_C", {_C.__file__!r})
extension = module_from_spec(spec)
spec.loader.exec_module(extension)
print(extension.isa())
"""


def run_python(code: str, isa: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"FASTCLIP_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.parametrize("isa", LEVELS)
def test_every_instruction_set_is_accepted(isa: str) -> None:
    if LEVELS.index(isa) > LEVELS.index(_best()):
        pytest.skip(f"this processor runs up to {_best()}")
    done = run_python(CHECK, isa)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"isa": isa, "violations": []}


@pytest.mark.parametrize("wish", ["avx1024", "AVX2", *LEVELS])
def test_an_instruction_set_that_is_not_there(wish: str) -> None:
    if wish in LEVELS[: LEVELS.index(_best()) + 1]:
        pytest.skip("this one is there")
    done = run_python(ISA, wish)
    assert done.returncode != 0
    for part in (f"FASTCLIP_ISA={wish} cannot be used", f"up to {_best()}", "unset it"):
        assert part in done.stderr


@cache
def _best() -> str:
    """Return the best level that this processor runs: what is in use where nobody asks for another."""
    return (
        _C.isa()
        if not os.environ.get("FASTCLIP_ISA")
        else run_python("from fastclip import _C; print(_C.isa())", "").stdout.strip()
    )


# Functions

ULP = 2.0**-23


def test_exponential() -> None:
    """Coefficients with factor 1 are e^z: within 2 ulp over the whole range, 0 where it leaves the normal numbers."""
    z = torch.linspace(-87.2, 0, 1024 * 64).view(64, 1024).float()
    tile = Tile(z)
    one, none = torch.ones(64, dtype=torch.float64), torch.zeros(1024, dtype=torch.float64)
    got, _ = tile.coefficients([0 * one, one, none, none])
    exact = z.double().exp()
    assert ((got - exact).abs() <= 2 * ULP * exact).all()
    for far in (-87.4, -88.0, -104.0, -1e4, -1e29):
        tile = Tile(torch.tensor([[0.0, far]]))
        got, _ = tile.coefficients([0 * one[:1], one[:1], none[:2], none[:2]])
        assert got.tolist() == [[1.0, 0.0]]


def test_exponential_of_a_narrow_cell() -> None:
    """The same where one shift serves the whole cell: rounding of z - shift is all that comes on top."""
    z = torch.linspace(-79, 0, 1024 * 64).view(64, 1024).float()
    one, none = torch.ones(64, dtype=torch.float64), torch.zeros(1024, dtype=torch.float64)
    got, _ = Tile(z).coefficients([0 * one, one, none, none])
    exact = z.double().exp()
    assert ((got - exact).abs() <= 80 * ULP * exact).all()


def test_softplus() -> None:
    """Sigmoid sums of one column are softplus(z): relative to its value, on both sides."""
    z = torch.linspace(-87, 100, 20001)[:, None]
    _, got, _, _ = Tile(z).statistics("sigmoid")
    exact = torch.nn.functional.softplus(z[:, 0].double(), threshold=40)
    assert ((got - exact).abs() <= 3 * ULP * exact).all()
    _, far, _, _ = Tile(torch.tensor([[-1e4], [1e4], [-torch.inf], [torch.inf]])).statistics("sigmoid")
    assert far.tolist() == [0.0, 1e4, 0.0, math.inf]


def test_sigmoid() -> None:
    z = torch.linspace(-87, 87, 1024 * 32).view(32, 1024)
    one, none = torch.ones(32, dtype=torch.float64), torch.zeros(1024, dtype=torch.float64)
    got, _ = Tile(z).coefficients([0 * one, one, none, none], "sigmoid")
    exact = torch.sigmoid(z.double())
    assert ((got - exact).abs() <= 4 * ULP * exact).all()
    far, _ = Tile(torch.tensor([[-1e4, 1e4, -torch.inf, torch.inf]])).coefficients(
        [0 * one[:1], one[:1], none[:4], none[:4]], "sigmoid"
    )
    assert far.tolist() == [[0.0, 1.0, 0.0, 1.0]]


# Tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_any_size(size: tuple[int, int], spread: float, dtype: torch.dtype) -> None:
    """Cells at every edge; narrow and wide ranges; a positive in every row that has one."""
    rows, cols = size
    products = normal(rows, cols, 1).to(dtype)
    tile = Tile(products, scale=spread, bias=-0.5, diagonal=1)
    # A logit's rounding is an exponential's error.
    relative = 4e-7 * max(1.0, 8 * spread) if dtype == torch.float32 else 1e-13 * max(1.0, 8 * spread)
    z = tile.negatives()
    row_shift, row_sum, col_shift, col_sum = tile.statistics()
    for got, exact in (
        (log_sum_exp(row_shift, row_sum), z.logsumexp(1)),
        (log_sum_exp(col_shift, col_sum), z.logsumexp(0)),
    ):
        torch.testing.assert_close(got, exact, rtol=0, atol=relative)
    _, softplus_sum, _, _ = tile.statistics("sigmoid")
    exact = torch.nn.functional.softplus(z, threshold=40).sum(dim=1)
    torch.testing.assert_close(softplus_sum, exact, rtol=relative, atol=relative)
    weights = weights_of(tile)
    got, (product, total) = tile.coefficients(weights)
    exact = (z - weights[0][:, None]).exp() + (z - weights[2]).exp()
    torch.testing.assert_close(got.double(), exact, rtol=relative, atol=1e-30)
    assert total == pytest.approx(exact.sum().item(), rel=relative)
    assert product == pytest.approx((exact * products.double()).sum().item(), abs=relative * 4 * total)


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_the_number_of_threads_changes_no_bit(spread: float) -> None:
    tile = Tile(normal(130, 2100, 2).float(), scale=spread, diagonal=50)
    weights = weights_of(tile)
    for objective in ("softmax", "sigmoid"):
        statistics = tile.statistics(objective)
        coefficients, totals = tile.coefficients(weights, objective)
        for threads in (2, 3, 7, 20):
            for got, expected in zip(tile.statistics(objective, threads), statistics, strict=True):
                assert torch.equal(got, expected)
            got, got_totals = tile.coefficients(weights, objective, threads)
            assert torch.equal(got, coefficients)
            assert got_totals == totals


def test_in_place() -> None:
    """Coefficients may overwrite the products that they are made of: the driver's scratch holds both."""
    products = normal(40, 1100, 3).float()
    tile = Tile(products, scale=5.0, diagonal=7)
    weights = weights_of(tile)
    positive = torch.full((40,), -3.0, dtype=torch.float64)
    names = ("row_shift", "row_factor", "col_shift", "col_factor")
    address = _C.Weights(
        **{name: w.data_ptr() for name, w in zip(names, weights, strict=True)}, positive=positive.data_ptr()
    )
    expected, (product, total) = tile.coefficients(weights)
    at = torch.arange(40)
    totals = _C.coefficients(
        _C.Objective.softmax, tile.tile, address, tile.memory.data_ptr(), tile.memory.stride(0), 1
    )
    assert (expected[at, at + 7] == 0).all()
    expected[at, at + 7] = -3.0
    assert torch.equal(tile.memory[:, :1100], expected)
    assert tile.memory[:, 1100:].isnan().all(), "nothing is written beside the tile"
    assert totals == pytest.approx(
        (product - 3 * products[at, at + 7].double().sum().item(), total - 120), rel=1e-6
    )


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_nan_stays_in_its_row_and_column(spread: float) -> None:
    products = normal(40, 60, 4).float()
    products[3, 50] = torch.nan
    tile = Tile(products, scale=spread)
    row_shift, row_sum, col_shift, col_sum = tile.statistics()
    assert log_sum_exp(row_shift, row_sum).isnan().nonzero().tolist() == [[3]]
    assert log_sum_exp(col_shift, col_sum).isnan().nonzero().tolist() == [[50]]
    _, total, _, _ = tile.statistics("sigmoid")
    assert total.isnan().nonzero().tolist() == [[3]]
    ones, shift = torch.ones(60, dtype=torch.float64), torch.full((60,), 4 * spread, dtype=torch.float64)
    for objective in ("softmax", "sigmoid"):
        got, totals = tile.coefficients([shift[:40], ones[:40], shift, ones], objective)
        assert got.isnan().nonzero().tolist() == [[3, 50]]
        assert all(math.isnan(t) for t in totals)


def test_running_sums_go_on_where_they_stood() -> None:
    """Two tiles, one after the other, into the same pairs: rows of one matrix that is 2 x 700 columns wide."""
    products = normal(40, 1400, 5).float()
    left, right = Tile(products[:, :700], scale=30.0), Tile(products[:, 700:], scale=30.0)
    sums = left.statistics()
    row, col = _C.Sums(sums[0].data_ptr(), sums[1].data_ptr()), _C.Sums(0, 0)
    _C.statistics(_C.Objective.softmax, right.tile, row, col, 1)
    exact = torch.cat([left.z, right.z], dim=1).logsumexp(1)
    torch.testing.assert_close(log_sum_exp(sums[0], sums[1]), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_counting(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Entries that reach their row's and their column's bar; ties reach it, and so does NaN."""
    rows, cols = size
    products = (4 * normal(rows, cols, 6)).round().to(dtype) / 4  # many ties
    products[rows // 2, cols // 2] = torch.nan
    bars = [normal(1, n, 7)[0].mul(4).round().div(4).to(dtype) for n in size]
    counts = [torch.full((n,), 10) for n in size]
    tile = Tile(products)
    _C.count(tile.tile, *(t.data_ptr() for t in (*bars, *counts)), 3)
    assert torch.equal(counts[0], 10 + (~(products < bars[0][:, None])).sum(dim=1))
    assert torch.equal(counts[1], 10 + (~(products < bars[1])).sum(dim=0))
