"""The rule of tests/acceptance.py itself: its oracle is right, correct kernels pass it, broken ones do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from tests.acceptance import ROUNDING, SATURATED, Judge
from tests.formulas import Case, Result, eager, fused, run
from tests.regimes import CASES, judge, trained, unit

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

OBJECTIVES = ("clip", "siglip")
DTYPES = tuple(ROUNDING)

#: What broken kernels do to a gradient.
MUTANTS: dict[str, Callable[[Result], Result]] = {
    "zeroed": lambda r: replace(r, dx=0 * r.dx),
    "negated": lambda r: replace(r, dx=-r.dx),
    "1 % off": lambda r: replace(r, dx=1.01 * r.dx),
    "one row zeroed": lambda r: replace(r, dx=_without_a_row(r.dx)),
    "dx and dy swapped": lambda r: replace(r, dx=_cut(r.dy, r.dx), dy=_cut(r.dx, r.dy)),
}


def _without_a_row(gradient: Tensor) -> Tensor:
    norms = gradient.norm(dim=1)
    # The least of them: bounds over the whole do not see it. (float16 cannot hold rows far below the largest.)
    least = norms.masked_fill(norms < 1e-6 * norms.max(), torch.inf).argmin()
    return gradient.index_fill(0, least, 0)


def _cut(source: Tensor, like: Tensor) -> Tensor:
    return torch.cat([source, source.new_zeros(like.shape)])[: len(like)]


@pytest.mark.parametrize(("objective", "name"), CASES)
def test_mutants_are_rejected(objective: str, name: str) -> None:
    for dtype in DTYPES:
        judged = judge(objective, name, dtype)
        exact = judged.exact
        # What a flawless kernel would return: the exact numbers, rounded once to the dtype.
        flawless = replace(exact, dx=_rounded(exact.dx, judged), dy=_rounded(exact.dy, judged))
        assert judged.violations(flawless) == []
        for mutant, mutate in MUTANTS.items():
            if not _harmless(exact, mutate(exact)):
                assert judged.violations(mutate(flawless)), f"{mutant} accepted in {dtype}"


def _rounded(gradient: Tensor, judged: Judge) -> Tensor:
    return (gradient * judged.upstream).to(judged.dtype).double() / judged.upstream


def _harmless(exact: Result, mutant: Result) -> bool:
    """Tell whether a mutation changes nothing that anybody could measure: gradients that are zero, or equal rows."""
    differences = [(getattr(exact, name) - getattr(mutant, name)).abs().max() for name in ("dx", "dy")]
    return max(differences) < 1e-3 * max(SATURATED, exact.dx.norm(dim=1).min().item())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["D = 48", "bias", "M < N, positives inside", "fits, margin 5"])
def test_wrong_scalars_are_rejected(name: str, objective: str) -> None:
    judged = judge(objective, name, torch.float32)
    right = judged.exact
    assert judged.violations(replace(right, loss=right.loss * 1.001))
    assert judged.violations(replace(right, loss=-right.loss))
    assert judged.violations(replace(right, dscale=right.dscale * 1.01))
    assert judged.violations(replace(right, dscale=0 * right.dscale))
    if right.dbias is not None and objective == "siglip":
        assert judged.violations(replace(right, dbias=right.dbias * 1.01))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_rejected(poison: float) -> None:
    judged = judge("clip", "one pair", torch.float32)  # saturated: nothing else would notice
    for name in ("loss", "dx", "dscale"):
        broken = torch.full_like(getattr(judged.exact, name), poison)
        assert judged.violations(replace(judged.exact, **{name: broken}))


def test_a_wrong_shape_is_rejected() -> None:
    judged = judge("clip", "M < N", torch.float32)
    assert judged.violations(replace(judged.exact, dx=judged.exact.dx[:-1]))
    assert judged.violations(replace(judged.exact, dbias=torch.zeros(())))


@pytest.mark.parametrize(("objective", "name"), CASES)
def test_oracle_is_plain_torch_in_float64(objective: str, name: str) -> None:
    """Two formulas, one number: wherever plain torch keeps its digits in float64 the oracle has the same."""
    judged = judge(objective, name, torch.float64)
    exact, plain = judged.exact, run(eager, judged.case, torch.float64)
    rounding = 1e-12 * max(1.0, judged.z_max)
    torch.testing.assert_close(exact.loss, plain.loss, rtol=rounding, atol=rounding)
    for name in ("dx", "dy", "dscale"):
        x, e = getattr(exact, name), getattr(plain, name)
        # Plain torch's coefficients are differences of numbers of this size.
        size = judged.case.scale / len(judged.case.x) * _largest_inverse_norm(judged.case)
        torch.testing.assert_close(x, e, rtol=rounding, atol=rounding * max(size, 1.0))


def _largest_inverse_norm(case: Case) -> float:
    if not case.normalize:
        return max(case.x.norm(dim=1).max().item(), case.y.norm(dim=1).max().item())
    return max(1 / max(t.norm(dim=1).min().item(), 1e-12) for t in (case.x, case.y))


@pytest.mark.parametrize("margin", [5.0, 30.0, 90.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_oracle_is_exact_where_plain_torch_is_not(objective: str, margin: float) -> None:
    """Against 60 digits: a model that fits its batch, where cross-entropy in float64 is left with none."""
    case = replace(
        trained(margin, rows=4), objective=objective, bias=-90.0 if objective == "siglip" else None
    )
    result = run(fused("reference"), case, torch.float64)
    loss, dx = _in_sixty_digits(case)
    assert float(abs(mpf(result.loss.item()) / loss - 1)) < 1e-12
    error = torch.tensor(
        [
            [float(mpf(v.item()) - e) for v, e in zip(*rows, strict=True)]
            for rows in zip(result.dx, dx, strict=True)
        ]
    )
    assert error.abs().max() < 1e-12 * result.dx.abs().max() + 1e-300


def _in_sixty_digits(case: Case) -> tuple[mpf, list[list[mpf]]]:
    """Return the loss and dx of square unnormalised cases by the textbook formula."""
    mp.dps = 60
    m = len(case.x)
    x, y = ([[mpf(v.item()) for v in row] for row in features] for features in (case.x, case.y))
    z = [[case.scale * mpmath.fdot(a, b) + (case.bias or 0) for b in y] for a in x]
    g = [[mpf(0)] * m for _ in range(m)]
    loss = mpf(0)
    for i in range(m):
        if case.objective == "siglip":
            for j in range(m):
                sign = -1 if i == j else 1
                loss += mpmath.log1p(mpmath.exp(sign * z[i][j])) / m
                g[i][j] += sign / (1 + mpmath.exp(-sign * z[i][j])) / m
            continue
        row, col = sum(map(mpmath.exp, z[i])), sum(mpmath.exp(z[j][i]) for j in range(m))
        loss += (mpmath.log(row) + mpmath.log(col) - 2 * z[i][i]) / (2 * m)
        for j in range(m):
            g[i][j] += (mpmath.exp(z[i][j]) / row - (i == j)) / (2 * m)
            g[j][i] += (mpmath.exp(z[j][i]) / col - (i == j)) / (2 * m)
    return loss, [[case.scale * mpmath.fdot(row, column) for column in zip(*y, strict=True)] for row in g]


def test_labels_of_the_plain_formula_mask() -> None:
    """The plain formula's masking is itself right: a column that is excluded for a row might as well not be there."""
    x, y = unit(3, 8, 1), unit(4, 8, 2)
    excluded_last = (
        torch.tensor([0, 1, 2]),
        torch.tensor([3, 4, 5, 0]),
    )  # the last text is no negative of the first
    with_labels = run(eager, Case(x, y, 5.0, labels=excluded_last), torch.float64)
    z = 5.0 * x @ y.T
    row = torch.logsumexp(z, dim=1) - z.diagonal()
    row[0] = torch.logsumexp(z[0, :3], dim=0) - z[0, 0]
    col = torch.logsumexp(z, dim=0)[:3] - z.diagonal()
    torch.testing.assert_close(with_labels.loss, (row + col).mean() / 2)
