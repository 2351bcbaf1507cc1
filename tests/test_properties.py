"""What holds of every input: properties, on cases that hypothesis makes up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastclip import blockwise
from fastclip.backends import get_backend
from fastclip.objectives import Objective
from tests.acceptance import Judge
from tests.formulas import Case, Result, eager, fused, run
from tests.places import BACKENDS, COMPILED_BACKENDS
from tests.regimes import normal, unit
from tests.test_blockwise import block_shape

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

INTERPRETED = [backend for backend in BACKENDS if backend not in COMPILED_BACKENDS]

EVERYTHING = ("clip", "info_nce", "siglip", "clip_multi", "siglip_multi")
SYMMETRIC = ("clip", "siglip", "clip_multi", "siglip_multi")


@st.composite
def cases(
    draw: st.DrawFn, objectives: tuple[str, ...] = EVERYTHING, square: bool = False, large: int = 40
) -> Case:
    """Draw a case: any shape, offset, scale, labels, normalised or not."""
    objective = draw(st.sampled_from(objectives))
    m = draw(st.integers(1, large))
    n = m if square else m + draw(st.integers(0, large))
    diagonal = 0 if objective.endswith("_multi") else draw(st.integers(0, n - m))
    width, seed = draw(st.integers(1, 20)), draw(st.integers(0, 999))
    normalize = draw(st.booleans())
    make = normal if normalize else unit
    labels = None
    if objective.endswith("_multi") or draw(st.booleans()):
        kinds = draw(st.integers(1, 10))
        generator = torch.Generator().manual_seed(seed)
        rows, cols = (torch.randint(0, kinds, (k,), generator=generator) for k in (m, n))
        if objective.endswith("_multi"):
            cols[0] = rows[0]  # one positive at least
        labels = (rows, cols)
    return Case(
        make(m, width, seed),
        make(n, width, seed + 1000),
        scale=draw(st.sampled_from([1e-3, 1.0, 14.3, 100.0])),
        objective=objective,
        bias=None if objective == "info_nce" else draw(st.sampled_from([None, -10.0, 3.0])),
        normalize=normalize,
        diagonal=diagonal,
        labels=labels,
        label_smoothing=draw(st.sampled_from([0.0, 0.1])) if objective in ("clip", "info_nce") else 0.0,
    )


def assert_close(ours: Result, theirs: Result, exact: float = 1e-11) -> None:
    """Compare two float64 results. Gradients may cancel: their error is measured against the largest of them."""
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=exact, atol=exact)
    for name in ("dx", "dy", "dscale"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        size = max(1.0, theirs.dx.abs().max().item(), theirs.dy.abs().max().item())
        torch.testing.assert_close(mine, other, rtol=0, atol=100 * exact * size)


def double(case: Case, backend: str) -> Result:
    return run(fused(backend), case, torch.float64)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases(square=True), seed=st.integers(0, 99))
def test_permutation_equivariance(backend: str, case: Case, seed: int) -> None:
    """The order of the pairs does not matter: the loss stays, gradients go with their rows."""
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(seed))
    labels = None if case.labels is None else (case.labels[0][order], case.labels[1][order])
    shuffled = double(replace(case, x=case.x[order], y=case.y[order], labels=labels), backend)
    plain = double(case, backend)
    assert_close(shuffled, replace(plain, dx=plain.dx[order], dy=plain.dy[order]))


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases(SYMMETRIC, square=True))
def test_transpose_symmetry(backend: str, case: Case) -> None:
    """Images and texts may change places."""
    labels = None if case.labels is None else case.labels[::-1]
    swapped = double(replace(case, x=case.y, y=case.x, labels=labels), backend)
    assert_close(replace(swapped, dx=swapped.dy, dy=swapped.dx), double(case, backend))


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases(), rows=st.integers(1, 50), cols=st.integers(1, 90))
def test_block_size_independence(backend: str, case: Case, rows: int, cols: int) -> None:
    plain = double(case, backend)
    with block_shape(backend, max(rows, len(case.x) // 8 + 1), max(cols, len(case.y) // 8 + 1)):
        assert_close(double(case, backend), plain)


@pytest.mark.parametrize("backend", [name for name in COMPILED_BACKENDS if name != "reference"])
@given(case=cases())
def test_backends_agree(backend: str, case: Case) -> None:
    assert_close(double(case, backend), double(case, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=15)
@given(case=cases(("clip", "info_nce", "siglip", "siglip_multi"), large=20))
def test_backends_are_accepted(backend: str, dtype: torch.dtype, case: Case) -> None:
    """The rule of tests/acceptance.py on inputs that nobody chose.

    (Without clip_multi, the difference of two terms: it is as exact as they are, not as their difference is small.)
    """
    judged = Judge.of(case, dtype)
    assert judged.violations(judged.run(fused(backend))) == []


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases())
def test_every_option_is_the_plain_formula(backend: str, case: Case) -> None:
    """Labels are masking in plain torch, smoothing is cross_entropy's, an offset shifts the targets, and so on."""
    assert_close(double(case, backend), run(eager, case, torch.float64), exact=1e-10)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
def test_labels_are_only_compared(backend: str, case: Case, seed: int) -> None:
    """Any renaming of the labels gives the same bits."""
    if case.labels is None:
        return
    names = torch.randint(-(2**62), 2**62, (10,), generator=torch.Generator().manual_seed(seed))
    renamed = replace(case, labels=(names[case.labels[0]], names[case.labels[1]]))
    ours, theirs = double(renamed, backend), double(case, backend)
    assert torch.equal(ours.loss, theirs.loss) or case.label_smoothing or case.objective == "clip_multi"
    assert_close(ours, theirs)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases(), low=st.integers(-3, 3), high=st.integers(-3, 3))
def test_normalising_forgets_the_norms(backend: str, case: Case, low: int, high: int) -> None:
    """With normalize=True rows may have any length, and gradients shrink with it: dx is of degree -1 in x."""
    case = replace(case, normalize=True)
    factors = [torch.logspace(low, high, len(t), dtype=torch.float64)[:, None] for t in (case.x, case.y)]
    plain = double(case, backend)
    longer = double(replace(case, x=case.x * factors[0], y=case.y * factors[1]), backend)
    assert_close(replace(longer, dx=longer.dx * factors[0], dy=longer.dy * factors[1]), plain)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(case=cases(("clip", "siglip")), factor=st.sampled_from([-3.0, 0.0, 0.5, 1024.0]))
def test_gradients_are_linear_in_the_upstream_gradient(backend: str, case: Case, factor: float) -> None:
    x, y = (t.clone().requires_grad_() for t in (case.x, case.y))
    loss = fused(backend)(case, x, y, torch.tensor(case.scale, dtype=torch.float64), None)
    once = torch.autograd.grad(loss, (x, y), retain_graph=True)
    times = torch.autograd.grad(factor * loss, (x, y))
    for a, b in zip(times, once, strict=True):
        torch.testing.assert_close(a, factor * b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(2, 40), st.integers(1, 9)),
    cut=st.floats(0, 1),
    scale=st.sampled_from([1.0, 100.0, 1e4]),
)
def test_merging_two_column_blocks_is_one(
    backend: str, shape: tuple[int, int, int], cut: float, scale: float
) -> None:
    """The statistics of [y1; y2] are those of y1 and y2, merged."""
    m, n, width = shape
    x, y = unit(m, width, m), unit(n, width, n + 100)
    at = 1 + int(cut * (n - 2))
    runner = get_backend(backend)

    def statistics(columns: Tensor) -> blockwise.Statistics:
        scalar = torch.tensor(scale, dtype=torch.float64)
        problem = blockwise.pose(runner, x, columns, scalar, None, None, Objective.SOFTMAX, False, None)
        return blockwise.statistics(runner, problem, torch.float64, columns=True, keep=0)

    whole, first, second = statistics(y), statistics(y[:at]), statistics(y[at:])
    first.rows.merge_(second.rows.shift, second.rows.sum)
    torch.testing.assert_close(first.rows.log_sum_exp(), whole.rows.log_sum_exp(), rtol=1e-12, atol=1e-12)
    expected = torch.logsumexp(scale * x @ y.T, dim=1)
    torch.testing.assert_close(whole.rows.log_sum_exp(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", INTERPRETED)
@settings(max_examples=5)
@given(case=cases(SYMMETRIC, square=True, large=20), seed=st.integers(0, 99))
def test_symmetries_through_the_interpreter(backend: str, case: Case, seed: int) -> None:
    case = case.rounded(torch.float16)
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(seed))
    labels = None if case.labels is None else (case.labels[0][order], case.labels[1][order])
    plain = run(fused(backend), case, torch.float32)
    shuffled = replace(case, x=case.x[order], y=case.y[order], labels=labels)
    assert_close(
        run(fused(backend), shuffled, torch.float32),
        replace(plain, dx=plain.dx[order], dy=plain.dy[order]),
        1e-6,
    )
