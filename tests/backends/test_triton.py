"""The Triton backend's kernels through Triton's interpreter, on every path that they have.

What every backend promises is tested for all of them elsewhere (tests/test_losses.py), on problems too small for the
main kernels; here small tiles send small problems through those.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip
from fastclip import blockwise
from fastclip.backends import Block, get_backend
from fastclip.backends.base import Problem
from fastclip.objectives import Objective, Sums
from tests import test_distillation as distillation
from tests.acceptance import Judge
from tests.formulas import NAMES, Case, fused, run
from tests.regimes import judge, normal, random, unit

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported without TRITON_INTERPRET=1", allow_module_level=True)

import triton.language as tl  # noqa: E402

from fastclip.backends import triton as backend  # noqa: E402
from fastclip.backends.triton import forward, labels, tiles  # noqa: E402
from fastclip.backends.triton import plan as planning  # noqa: E402
from fastclip.backends.triton.pack import PackedHalves, pack  # noqa: E402
from tests.backends.triton_paths import plans  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

TRITON = get_backend("triton")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

#: Shapes against tiles of 16 x 32: (M, N, diagonal).
SHAPES = {
    "whole tiles": (64, 64, 0),
    "ragged rows and columns": (70, 75, 0),
    "diagonal off the tiles": (50, 90, 21),
    "diagonal at the end": (48, 128, 80),
    "no whole tile": (10, 20, 7),
    "wide": (20, 200, 100),
}


def case(shape: str, **options: object) -> Case:
    m, n, diagonal = SHAPES[shape]
    return random(m, n, 40, diagonal=diagonal, **options)  # type: ignore[arg-type]


def assert_accepted(what: Case, dtype: torch.dtype) -> None:
    judged = Judge.of(what, dtype)
    assert judged.violations(judged.run(fused("triton"))) == []


@pytest.mark.parametrize("shape", ["ragged rows and columns", "diagonal off the tiles", "no whole tile"])
def test_main_kernels_on_shapes(shape: str) -> None:
    with plans():
        assert_accepted(case(shape), F16)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"scale": 100.0}, F32),  # hi | lo, three products, two halves of coefficients
        ({"normalize": True}, BF16),  # factors per row and column
        ({"objective": "siglip", "bias": -10.0}, F16),
        ({"objective": "siglip", "bias": -10.0, "normalize": True}, BF16),
        ({"objective": "info_nce"}, F16),  # rows alone
        ({"bias": -3.0}, F32),
    ],
    ids=str,
)
def test_main_kernels_of_every_kind(options: dict, dtype: torch.dtype) -> None:
    with plans():
        assert_accepted(case("ragged rows and columns", **options), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("block", [(16, 64), (16, 16)])
def test_tiles_of_other_proportions(block: tuple[int, int]) -> None:
    with plans(block):
        assert_accepted(case("diagonal off the tiles"), F16)


@pytest.mark.slow
def test_column_sums_where_products_are_no_fragments() -> None:
    with plans(fragments=False):
        assert_accepted(case("diagonal off the tiles"), F16)


@pytest.mark.parametrize("dtype", [pytest.param(F32, marks=pytest.mark.slow), BF16])
def test_tensor_descriptors_are_pointer_loads(dtype: torch.dtype) -> None:
    results = []
    for tma in (False, True):
        with plans(tma=tma):
            results.append(run(fused("triton"), case("diagonal off the tiles").rounded(dtype), dtype))
    assert all(torch.equal(getattr(results[0], name), getattr(results[1], name)) for name in NAMES[:4])


@pytest.mark.parametrize("strips", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_several_blocks(objective: str, strips: bool) -> None:
    bias = -10.0 if objective == "siglip" else None
    with plans(strips=strips, blocks=(32, 64)):
        assert_accepted(case("diagonal off the tiles", objective=objective, bias=bias), F32)


#: Every objective, dtype and shape together, and in turn every other choice.
EVERYTHING = [
    (*kind, number % 2 == 0, number // 2 % 2 == 0, ((32, 64), (10**6, 10**6))[number // 4 % 2])
    for number, kind in enumerate(product(("clip", "siglip", "info_nce"), (F32, BF16, F16), SHAPES))
]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "dtype", "shape", "tma", "normalize", "blocks"), EVERYTHING)
def test_main_kernels_on_everything(
    objective: str, dtype: torch.dtype, shape: str, tma: bool, normalize: bool, blocks: tuple[int, int]
) -> None:
    bias = -10.0 if objective == "siglip" else None
    with plans(tma=tma, blocks=blocks):
        assert_accepted(case(shape, objective=objective, bias=bias, normalize=normalize), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(
            "scale 1e-3",
            "scale 1e4",
            "not normalised",
            "norms 1e-2 to 1e3",
            "fits, margin 12",
            "fits, margin 80",
        ),
        *("aligned", "cosines below 0.1", "cosines about -0.9", "two clusters", "repeated texts", "bias"),
    ],
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_main_kernels_in_every_regime(name: str, dtype: torch.dtype) -> None:
    with plans():
        judged = judge("clip", name, dtype)
        assert judged.violations(judged.run(fused("triton"))) == []


# Labels.


def with_labels(shape: str, kinds: int, **options: object) -> Case:
    """A case whose texts have labels of so many kinds; one image has a label that its text has not."""
    m, n, diagonal = SHAPES[shape]
    cols = torch.randint(0, kinds, (n,), generator=torch.Generator().manual_seed(kinds))
    rows = cols[diagonal : diagonal + m].clone()
    rows[0] = 999
    return case(shape, labels=(rows, cols), **options)


@pytest.mark.parametrize("kinds", [1, 6, 200])
@pytest.mark.parametrize("shape", ["ragged rows and columns", "diagonal off the tiles"])
def test_tiles_with_equal_labels_are_done_apart(shape: str, kinds: int) -> None:
    with plans(tma=kinds == 6, blocks=(32, 64) if kinds == 6 else (10**6, 10**6)):
        assert_accepted(with_labels(shape, kinds), F16)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"scale": 100.0}, F32),
        ({"normalize": True}, BF16),
        ({"objective": "info_nce"}, F16),
        ({"objective": "siglip", "bias": -10.0, "normalize": True}, BF16),
    ],
    ids=str,
)
def test_labels_of_every_kind_of_problem(options: dict, dtype: torch.dtype) -> None:
    with plans():
        assert_accepted(with_labels("ragged rows and columns", 20, **options), dtype)


def test_only_tiles_with_equal_labels_are_marked() -> None:
    rows, cols = torch.arange(40), torch.arange(80) - 8
    rows[3], rows[20] = cols[70], 999  # the third row of tiles and the second have one more, or none
    problem = replace(
        problem_of(40, 80), row_labels=rows, col_labels=cols, diagonal=8, x=[None] * 40, y=[None] * 80
    )
    tile = planning.Tile(16, 32, 64, 4, 2, 2, 1)
    marks = labels.marks_of(problem, tile)
    assert marks.stride == 3
    assert marks.at.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    nowhere = labels.marks_of(replace(problem, diagonal=None, cache={}), tile)
    assert nowhere.at.tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]


# Distillation.


@pytest.mark.parametrize(
    ("dtype", "exact", "tolerance"), [(F32, False, 2e-6), (F32, True, 2e-6), (BF16, False, 4e-3)], ids=str
)
def test_a_teachers_coefficients_are_subtracted(dtype: torch.dtype, exact: bool, tolerance: float) -> None:
    inputs = distillation.batch(70, 75, dtype)
    with plans(exact=exact, blocks=(32, 64)):
        loss = fastclip.distill_loss(**inputs, normalize=True, backend="triton")
    loss.backward()
    expected, gradients = distillation.oracle(inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in zip(("image_features", "text_features", "logit_scale"), gradients, strict=True):
        assert (inputs[name].grad - gradient).norm() <= tolerance * gradient.norm(), name


def test_digits_stay_where_a_student_is_nearly_its_teacher() -> None:
    # Coefficients are rounded to fp16 after the subtraction: their error is that of the small difference.
    inputs = distillation.batch(48, 64, BF16)
    for side in ("image_features", "text_features"):
        inputs[f"teacher_{side}"] = inputs[side].detach()
    inputs["teacher_logit_scale"] = 9.0 * (1 + 1e-3)
    with plans(blocks=(32, 64)):
        fastclip.distill_loss(**inputs, normalize=True, backend="triton").backward()
    _, gradients = distillation.oracle(inputs)
    error = (inputs["image_features"].grad.double() - gradients[0]).norm() / gradients[0].norm()
    assert error.item() < 1e-2


# The shift that all sums share, and what happens where it is too large.


def far_row(scale: float) -> Case:
    """One row points away from everything: its logits lie near -scale, the others' near scale."""
    y = F.normalize(unit(1, 48, 3) + 0.1 * unit(64, 48, 4), dim=1)
    x = y.clone()
    x[5] = -F.normalize(y.mean(dim=0), dim=0)
    return Case(x, y, scale)


def statistics_of(what: Case, dtype: torch.dtype) -> tuple[Problem, blockwise.Statistics, list[Tensor]]:
    """Return a case's statistics and the flags that were set on the way."""
    flags, checked = [], forward._checked

    def spy(*args: object) -> tuple:
        result = checked(*args)  # type: ignore[arg-type]
        flags.append(result[2].at)
        return result

    x, y = what.x.to(dtype), what.y.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_checked", spy)
        scale = torch.tensor(what.scale)
        problem = blockwise.pose(
            TRITON, x, y, scale, None, None, Objective.SOFTMAX, what.normalize, what.diagonal
        )
        return problem, blockwise.statistics(TRITON, problem, dtype, columns=True, keep=0), flags


@pytest.mark.parametrize(("scale", "flagged"), [(70.0, False), (100.0, True)])
def test_a_row_far_below_the_bound_is_done_again(scale: float, flagged: bool) -> None:
    what = far_row(scale).rounded(BF16)
    with plans():
        _, statistics, flags = statistics_of(what, BF16)
        assert [bool(f.any()) for f in flags] == [flagged]
        z = scale * what.x @ what.y.T
        z.fill_diagonal_(-torch.inf)
        # The far row's sum would be 2^-290: not one of its terms is a float32 number.
        torch.testing.assert_close(statistics.rows.log_sum_exp(), z.logsumexp(1), rtol=0, atol=3e-5)
        torch.testing.assert_close(statistics.cols.log_sum_exp(), z.logsumexp(0), rtol=0, atol=3e-5)
        assert_accepted(what, BF16)


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_random_features_need_no_repair_at_usual_scales(scale: float) -> None:
    with plans():
        problem, _, flags = statistics_of(random(64, 64, 64, scale=scale), F32)
    assert [bool(f.any()) for f in flags] == [scale == 1e4]
    _, bias, shift, flush, infinite = problem.cache["logit"].tolist()
    assert bias == infinite == 0
    # One row and column's length each, and what log2(64) needs below the largest exponent.
    largest = scale * math.log2(math.e)
    assert max(0, largest + 6 - 127) <= shift <= max(0, 1.01 * largest + 7 - 127)
    assert flush == (largest + shift > 126)


def test_flags_are_for_the_block_that_has_them() -> None:
    with plans(blocks=(32, 64)):
        _, _, flags = statistics_of(far_row(100.0), BF16)
    assert [bool(f.any()) for f in flags] == [True, False]


def test_coefficients_of_a_flagged_row_are_done_again() -> None:
    # Forward, the row's sum is large enough; backward its weight 1 / sum exceeds what one exponential can carry.
    what = replace(far_row(70.0), objective="info_nce").rounded(BF16)
    with plans():
        problem, statistics, flags = statistics_of(what, BF16)
        assert not flags[0].any()
        grad = torch.full((64,), 1 / 64)
        weights = TRITON.weigh(problem, statistics.rows, None, statistics.positive, grad, None)
        out = TRITON.scratch(problem, 64, 64)
        block = Block(slice(0, 64), slice(0, 64))
        totals = TRITON.totals(problem, weights, [TRITON.coefficients(problem, block, weights, None, out)])
        assert weights.flags.any()
        s = what.x @ what.y.T
        exact = (torch.softmax(what.scale * s, 1) - torch.eye(64)) / 64
        assert ((out[0].double() / weights.power - exact)[5].norm() / exact[5].norm()).item() < 1e-3
        assert totals[0].item() == pytest.approx((exact * s).sum().item(), rel=1e-4)


# Numbers.


@pytest.mark.slow
def test_one_half_of_coefficients_holds_the_contract_from_a_few_thousand_pairs() -> None:
    # Small problems have float32 coefficients; large ones fp16, and this is large enough for the rule.
    with plans((64, 64), blocks=(128, 10**6)):
        assert_accepted(random(300, 300, 16, scale=30.0), F16)


@triton.jit
def _softplus(t, out):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 1024)
    tl.store(out + at, tiles.softplus(tl.load(t + at)))


def test_softplus_keeps_the_digits_of_small_losses() -> None:
    t = torch.cat([torch.linspace(-170, 170, 1000), torch.tensor([0.0, -1e4, 1e4] * 8)])
    out = torch.empty_like(t)
    _softplus[(1,)](t, out)
    exact = torch.logaddexp(torch.zeros(()).double(), t.double() * math.log(2))
    normal_numbers = exact > 2.0**-126
    relative = ((out.double() - exact) / exact)[normal_numbers].abs().max().item()
    assert relative < 4 * 2.0**-24
    assert out[~normal_numbers].abs().max().item() <= 2.0**-126


def unpacked(features: Tensor, normalize: bool) -> Tensor:
    packed = pack(features, normalize)
    halves = sum(packed.half(i, slice(0, len(packed))).double() for i in range(packed.halves))
    unit_of, reach, _ = packed.measure.double().tolist()
    factor = 1.0 if packed.factor is None else packed.factor.double()[:, None]
    assert packed.data[len(packed) :].eq(0).all()
    norms = (factor * halves).norm(dim=1)
    assert norms[norms.isfinite()].max() <= reach
    return (unit_of * factor * halves)[:, : packed.features]


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_16_bit_rows_are_packed_exactly(dtype: torch.dtype) -> None:
    x = (normal(70, 100, 1) * torch.logspace(-1, 2, 70)[:, None]).to(dtype)
    assert torch.equal(unpacked(x, False), x.double())
    exact = F.normalize(x.double(), dim=1)
    assert (unpacked(x, True) - exact).abs().max().item() < 2.0**-23


def test_float32_rows_are_packed_to_22_bits() -> None:
    x = normal(70, 100, 2).float()
    for normalize in (False, True):
        exact = F.normalize(x.double(), dim=1) if normalize else x.double()
        error = (unpacked(x, normalize) - exact).norm(dim=1) / exact.norm(dim=1)
        assert error.max().item() < 2.0**-22


def test_one_product_where_torch_allows_tensorfloat32() -> None:
    precision = torch.get_float32_matmul_precision()
    x = unit(20, 48, 1).float()
    assert pack(x, False).halves == 2
    try:
        torch.set_float32_matmul_precision("high")
        assert pack(x, False).halves == 1
        loss = fastclip.clip_loss(x, x.roll(1, 0), 10.0, backend="triton")
    finally:
        torch.set_float32_matmul_precision(precision)
    exact = fastclip.clip_loss(x.double(), x.double().roll(1, 0), 10.0, backend="reference")
    assert 0 < abs(loss.item() / exact.item() - 1) < 1e-3


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("normalize", [True, False])
def test_extreme_rows_are_packed(dtype: torch.dtype, normalize: bool) -> None:
    x = torch.zeros(5, 3)
    x[0], x[1, 1], x[2], x[3, 0] = 1e30, 1e-30, 1e38, torch.inf
    if normalize:
        got = unpacked(x.to(dtype), True)
        torch.testing.assert_close(
            got[[0, 2]], F.normalize(x[[0, 2]].to(dtype).double(), dim=1), rtol=1e-5, atol=0
        )
        assert got[1, 1] == pytest.approx(1e-18, rel=0.01)  # below F.normalize's clamp
        assert not got[3, 0].isfinite() and got[3, 1:].eq(0).all()
    else:
        got = unpacked(x.to(dtype), False)
        torch.testing.assert_close(got[0], x[0].to(dtype).double(), rtol=1e-3, atol=0)
        assert not got[3, 0].isfinite() and got[3, 1:].eq(0).all()
    assert got[4].eq(0).all()


def test_any_strides() -> None:
    both = normal(40, 2 * 30, 5).float()
    x, y = both.chunk(2, -1)
    assert torch.equal(unpacked(x, True), unpacked(x.clone(), True))
    assert torch.equal(unpacked(both.T, False), unpacked(both.T.clone(), False))
    assert torch.equal(unpacked(y[:1].expand(9, -1), False), unpacked(y[:1].repeat(9, 1), False))


def test_similarities_of_a_block() -> None:
    x, y = normal(40, 30, 6).bfloat16(), normal(50, 30, 7).bfloat16()
    block = Block(slice(8, 40), slice(16, 50))
    got = TRITON.similarities(TRITON.pack(x, True), TRITON.pack(y, True), block)
    exact = F.normalize(x.double(), dim=1) @ F.normalize(y.double(), dim=1).T
    torch.testing.assert_close(got.double(), exact[8:40, 16:50], rtol=0, atol=1e-6)


def test_similarities_of_an_infinite_feature() -> None:
    # float32 features are hi and lo, and infinity times a lo of 0 would be NaN.
    x, y = unit(20, 40, 1).float(), unit(30, 40, 2).float().abs()
    x[3, 7] = torch.inf
    values, _ = fastclip.similarity_topk(x, y, 30, backend="triton")
    assert values[3].eq(torch.inf).all()
    torch.testing.assert_close(values, (x @ y.T).sort(descending=True).values, rtol=1e-3, atol=1e-3)


def test_same_bits_every_time() -> None:
    what = case("no whole tile").rounded(F32)
    with plans():
        first, second = (run(fused("triton"), what, F32) for _ in range(2))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in NAMES[:4])


@pytest.mark.parametrize("strips", [True, False])
def test_infinite_logits_of_the_sigmoid_are_not_nan(strips: bool) -> None:
    # float32 features are hi and lo, and infinity times a lo of 0 would be NaN.
    x, y = unit(64, 40, 1).float(), unit(64, 40, 2).float()
    x[3, 7] = torch.inf
    y.requires_grad_()
    leaf = x.clone().requires_grad_()
    with plans(strips=strips):
        loss = fastclip.siglip_loss(leaf, y, 10.0, logit_bias=-10.0, backend="triton")
        loss.backward()
    assert loss == torch.inf
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    s = (unit(64, 40, 1).float() @ y.detach().T).double()
    own = torch.where(
        torch.eye(64, dtype=torch.bool), -torch.sigmoid(10 - 10 * s), torch.sigmoid(10 * s - 10)
    )
    exact = 10 / 64 * own @ y.detach().double()
    rest = torch.arange(64) != 3
    # Where a feature is infinite nobody needs more than hi.
    torch.testing.assert_close(leaf.grad[rest].double(), exact[rest], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("strips", [True, False])
def test_what_is_not_finite_comes_out(strips: bool, bad: float) -> None:
    x, y = unit(64, 40, 1).float(), unit(64, 40, 2).float()
    x[3, 7] = bad
    with plans(strips=strips):
        values = fastclip.clip_loss(x, y, 10.0, reduction="none", backend="triton")
    z, own = 10 * x @ y.T, torch.arange(64)
    plain = F.cross_entropy(z, own, reduction="none") + F.cross_entropy(z.T, own, reduction="none")
    assert torch.equal(values.isfinite(), plain.isfinite())
    rows = Sums.empty(64, torch.float64, x.device)
    with plans(strips=strips):
        problem = blockwise.pose(TRITON, x, y, torch.tensor(10.0), None, None, Objective.SOFTMAX, False, 0)
        TRITON.statistics(problem, Block(slice(0, 64), slice(0, 64)), rows, None, None)
    assert (~rows.log_sum_exp().isfinite()).nonzero().flatten().tolist() == [3]


# Plans.


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan as on an H100."""
    monkeypatch.setattr(planning, "INTERPRETED", False)
    monkeypatch.setattr(planning, "_device", lambda index: ((9, 0), 132))


def problem_of(m: int, n: int, dtype: torch.dtype = BF16, **options: object) -> Problem:
    """Return a problem of which only sizes and kinds count."""
    x, y = (
        PackedHalves(
            torch.empty(1, 1).expand(rows, 512),
            None,
            torch.zeros(3),
            None,
            rows,
            512,
            2 if dtype == F32 else 1,
        )
        for rows in (m, n)
    )
    settings = {
        "objective": Objective.SOFTMAX,
        "diagonal": 0,
        "row_labels": None,
        "col_labels": None,
    } | options
    return Problem(x, y, torch.tensor(1.0), None, **settings)  # type: ignore[arg-type]


def test_large_problems_take_the_main_kernels(h100: None) -> None:
    assert planning.plan_for(problem_of(32768, 32768)).strips
    assert planning.plan_for(problem_of(2048, 4096)).strips
    assert not planning.plan_for(problem_of(1024, 1024)).strips  # launches dominate
    assert not planning.plan_for(problem_of(128, 10**6)).strips  # no two rows of tiles
    zeros = torch.zeros(32768, dtype=torch.int64)
    assert planning.plan_for(problem_of(32768, 32768, row_labels=zeros, col_labels=zeros)).strips
    many = {"objective": Objective.MULTI_SIGMOID, "diagonal": None}
    assert not planning.plan_for(problem_of(32768, 32768, **many)).strips


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_memory_is_bounded_whatever_the_size(h100: None, dtype: torch.dtype) -> None:
    # Beside packed features and gradients, at most 768 MiB: coefficients backward, partial sums forward.
    problem = problem_of(2**20, 2**20, dtype)
    plan = planning.plan_for(problem)
    rows, cols = plan.coefficients_block
    assert rows * cols * 2 * problem.x.halves <= 528 * 2**20
    m, n = plan.statistics_block
    general = 8 * (-(-n // plan.general.block_n) * m + -(-m // plan.general.block_m) * n)
    main = 4 * (-(-n // plan.statistics.block_n) * m + (plan.splits(m // 128, n // 256) + 4) * n)
    assert general + main <= 256 * 2**20


@pytest.mark.parametrize("n", [4096, 32768, 65536])
def test_strips_keep_all_processors_busy(h100: None, n: int) -> None:
    plan = planning.plan_for(problem_of(n, n))
    tiles, strips = min(n, 32768) // 128, min(n, 32768) // 256
    splits = plan.splits(tiles, strips)
    rounds = -(-strips * splits // 132) * -(-tiles // splits)
    assert tiles * strips / (132 * rounds) > 0.9


def test_gpus_without_tiles_of_their_own_take_the_nearest() -> None:
    def tile(capability: tuple[int, int], variant: str = "half", width: int = 512) -> planning.Tile:
        return planning.tile_for(capability, "statistics", variant, width)

    assert tile((8, 0), "float32", 1024) == tile((8, 0))
    assert tile((8, 9)) == tile((8, 6))
    assert tile((10, 3)) == tile((10, 0)) != tile((9, 0))
    assert tile((12, 0)) == tile((8, 6))  # no more shared memory than that


# Where it can run.


def test_says_what_it_does_not_take() -> None:
    assert "float64" in TRITON.unsupported_reason(torch.device("cpu"), torch.float64)
    assert "cuda" in TRITON.unsupported_reason(torch.device("cuda", 0), torch.float32)
    with pytest.raises(RuntimeError, match="float64"):
        fastclip.clip_loss(unit(4, 8, 1), unit(4, 8, 2), 10.0, backend="triton")


def test_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "TRITON_INTERPRET=1" in TRITON.unavailable_reason()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpus = [(7, 5)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: gpus[getattr(device, "index", device)]
    )
    assert "7.5" in TRITON.unavailable_reason()
    gpus[:] = [(9, 0), (7, 5)]
    assert TRITON.unavailable_reason() is None
    assert TRITON.unsupported_reason(torch.device("cuda", 0), torch.float32) is None
    assert "7.5" in TRITON.unsupported_reason(torch.device("cuda", 1), torch.float32)
    gpus[:] = [(10, 0)]
    monkeypatch.setattr(backend, "version", lambda name: "3.6.0")
    assert "3.6 does not compile it for compute capability 10.0" in TRITON.unavailable_reason()
    monkeypatch.setattr(backend, "version", lambda name: "3.10.1")
    assert TRITON.unavailable_reason() is None
