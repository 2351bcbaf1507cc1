"""Every backend on every regime, in every dtype, judged by the rule of tests/acceptance.py; and what losses promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip
from fastclip.backends import get_backend
from tests.acceptance import Judge
from tests.formulas import NAMES, Case, eager, fused, run
from tests.places import BACKENDS, COMPILED_BACKENDS, places
from tests.regimes import CASES, FINAL_SCALE, LARGE_CASES, REGIMES, judge, make, normal, random, unit

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

OBJECTIVES = ("clip", "siglip")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def short(dtype: object) -> str | None:
    """Name dtypes in test ids."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else None


def loss_of(objective: str) -> Callable[..., Tensor]:
    return fastclip.clip_loss if objective == "clip" else fastclip.siglip_loss


def accepted_runs() -> list:
    """Return the (backend, device, dtype, objective, name) to be judged; most of the interpreter's are slow tests."""
    runs = []
    for (backend, device), dtype in product(places(), DTYPES):
        if get_backend(backend).unsupported_reason(torch.device(device), dtype) is not None:
            continue
        interpreted = backend not in COMPILED_BACKENDS and device == "cpu"
        cases = list(enumerate(CASES))
        if interpreted and dtype != torch.float32:  # `python -m benchmarks accuracy` judges them all
            cases = cases[DTYPES.index(dtype) :: 3]
        for number, (objective, name) in cases:
            slow = interpreted and number % 7 != 0
            identity = f"{backend}-{device}-{short(dtype)}-{objective}-{name}"
            marks = [pytest.mark.slow] if slow else []
            runs.append(pytest.param(backend, device, dtype, objective, name, marks=marks, id=identity))
    return runs


@pytest.mark.parametrize(("backend", "device", "dtype", "objective", "name"), accepted_runs())
def test_accepted(backend: str, device: str, dtype: torch.dtype, objective: str, name: str) -> None:
    judged = judge(objective, name, dtype)
    assert judged.violations(judged.run(fused(backend), device)) == []


@pytest.mark.parametrize(("objective", "name"), LARGE_CASES)
@pytest.mark.parametrize(
    "dtype", [d if d == torch.float32 else pytest.param(d, marks=pytest.mark.slow) for d in DTYPES], ids=short
)
@pytest.mark.parametrize(("backend", "device"), [place for place in places() if place != ("triton", "cpu")])
def test_accepted_over_many_blocks(
    backend: str, device: str, dtype: torch.dtype, objective: str, name: str
) -> None:
    if get_backend(backend).unsupported_reason(torch.device(device), dtype) is not None:
        pytest.skip("the backend does not take this dtype")
    judged = judge(objective, name, dtype)
    assert judged.violations(judged.run(fused(backend), device)) == []


# Strides


def layouts(rows: Tensor) -> dict[str, Tensor]:
    """Return the same features (M, D) in other strides, as models hand them over."""
    wide = torch.cat([rows, rows], dim=1)
    return {
        "chunk": wide.chunk(2, dim=-1)[1],
        "transposed": rows.T.contiguous().T,
        "every second row": torch.stack([rows, rows], dim=1).flatten(0, 1)[::2],
        "shifted by one element": torch.cat([rows.new_zeros(1), rows.flatten()])[1:].view_as(rows),
        "a slice of (M, tokens, D)": torch.stack([rows, rows, rows], dim=1)[:, 1],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_no_bit(backend: str, objective: str, dtype: torch.dtype) -> None:
    case = random(33, 33, 20, objective=objective)
    x, y = case.x.to(dtype), case.y.to(dtype)

    def differentiate(x: Tensor, y: Tensor) -> list[Tensor]:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        loss = loss_of(objective)(x, y, 10.0, normalize=True, backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, (x, y))]

    expected = differentiate(x, y)
    for layout, strided in layouts(x).items():
        for got, want in zip(differentiate(strided, layouts(y)[layout]), expected, strict=True):
            assert torch.equal(got, want), layout


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_features(backend: str) -> None:
    row, y = unit(1, 20, 1).float().requires_grad_(), unit(9, 20, 2).float()
    expanded = fastclip.clip_loss(row.expand(9, 20), y, 10.0, backend=backend)
    repeated = fastclip.clip_loss(row.repeat(9, 1), y, 10.0, backend=backend)
    assert torch.equal(expanded, repeated)
    assert torch.equal(*(torch.autograd.grad(loss, row)[0] for loss in (expanded, repeated)))
    constant = torch.full((9, 1), 0.5).expand(9, 20)
    assert torch.equal(
        fastclip.clip_loss(constant, y, 10.0, backend=backend),
        fastclip.clip_loss(constant.contiguous(), y, 10.0, backend=backend),
    )


# What is not finite, what is never negative


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("where", ["one entry", "one row", "everywhere", "the only pair"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_finite_in_not_finite_out(
    backend: str, objective: str, normalize: bool, where: str, side: str, bad: float
) -> None:
    rows = 1 if where == "the only pair" else 9
    features = {"x": unit(rows, 7, 1), "y": unit(rows, 7, 2)}
    at = {"one entry": (4, 3), "one row": (4,), "everywhere": (), "the only pair": (0, 3)}[where]
    features[side][at] = bad
    case = Case(**features, scale=5.0, objective=objective, normalize=normalize)
    _expect_not_finite_where_plain_torch_is(case, backend)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_logits_without_nan(backend: str, objective: str) -> None:
    """Infinities that meet no zero and no other: positives or negatives at +-inf, and nothing turns into NaN early."""
    for x_row, y in ((torch.inf, 1.0), (-torch.inf, 1.0), (torch.inf, -1.0)):
        for rows in (1, 5):
            x = torch.ones(rows, 1, dtype=torch.float64)
            x[0] = x_row
            case = Case(x, torch.full((rows, 1), y, dtype=torch.float64), scale=1.0, objective=objective)
            _expect_not_finite_where_plain_torch_is(case, backend)
    # Row 0: its positive at +inf, its negatives at -inf; so for column 0.
    sign = torch.tensor([[1.0], [-1.0], [-1.0]], dtype=torch.float64)
    x = sign * torch.tensor([[torch.inf], [1.0], [1.0]])
    _expect_not_finite_where_plain_torch_is(Case(x, sign, scale=1.0, objective=objective), backend)


def _expect_not_finite_where_plain_torch_is(case: Case, backend: str) -> None:
    plain, ours = run(eager, case, torch.float32), run(fused(backend), case, torch.float32)
    if not plain.loss.isfinite():
        assert not ours.loss.isfinite()
    else:
        torch.testing.assert_close(
            ours.loss, plain.loss, rtol=2.0**-21, atol=0
        )  # both of them rounded to float32
    for name in ("dx", "dy"):
        if getattr(plain, name).isfinite().all():
            assert getattr(ours, name).isfinite().all(), name
        elif not plain.loss.isfinite():  # a finite loss has a gradient, whatever plain torch says
            assert not getattr(ours, name).isfinite().all(), name


@pytest.mark.parametrize("scalar", ["scale", "bias"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_that_are_not_finite(backend: str, objective: str, bad: float, scalar: str) -> None:
    case = random(9, 9, 7, objective=objective, bias=0.0)
    _expect_not_finite_where_plain_torch_is(replace(case, **{scalar: bad}), backend)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, FINAL_SCALE, 1e4])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=short)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_never_negative(backend: str, objective: str, dtype: torch.dtype, scale: float) -> None:
    if get_backend(backend).unsupported_reason(torch.device("cpu"), dtype) is not None:
        pytest.skip("the backend does not take this dtype")
    x = unit(20, 40, 1).to(dtype)
    for y in (x, unit(20, 40, 2).to(dtype), -x):
        losses = loss_of(objective)(x, y, scale, reduction="none", backend=backend)
        assert losses.isfinite().all()
        assert (losses >= 0).all()


@pytest.mark.parametrize("margin", [12, 20, 80])
@pytest.mark.parametrize("backend", BACKENDS)
def test_positives_without_another_keep_their_digits(backend: str, margin: int) -> None:
    """With labels that all differ many positives are one, and a batch that fits has the small loss of clip_loss."""
    if backend == "triton":
        pytest.skip("the same arithmetic, interpreted: slow")
    case = make("clip", f"fits, margin {margin}")
    results = []
    for more in ({}, {"labels": torch.arange(len(case.x)), "multi_positive": True}):
        x, y = (t.float().requires_grad_() for t in (case.x, case.y))
        loss = fastclip.clip_loss(x, y, case.scale, backend=backend, **more)
        loss.backward()
        results.append((loss.detach(), x.grad, y.grad))
    for one, many in zip(*results, strict=True):
        assert (one - many).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_of_labels_is_a_pair_of_them(backend: str) -> None:
    """What pairs with others of their label add, against the form that asks no row to be its own positive."""
    labels = torch.tensor([0, 1, 2, 0, 3, 0, 2])
    x, y = (unit(7, 12, seed).float() for seed in (1, 2))
    results = []
    for given in (labels, (labels, labels.clone())):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        loss = fastclip.clip_loss(*leaves, 20.0, labels=given, multi_positive=True, backend=backend)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


# Determinism


@pytest.mark.parametrize(("dtype", "threads"), [(torch.float32, 2), (torch.bfloat16, 1)], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_run(backend: str, objective: str, dtype: torch.dtype, threads: int) -> None:
    """(For any number of threads: tests/test_cpu_kernels.py; torch's matrix product alone may depend on that.)"""
    m, n = (61, 127) if backend == "triton" else (1030, 1100)
    case = random(m, n, 24, scale=FINAL_SCALE, objective=objective, bias=-20.0)
    torch.set_num_threads(threads)
    try:
        first, again = (run(fused(backend), case, dtype) for _ in range(2))
    finally:
        torch.set_num_threads(1)
    for name in NAMES:
        assert torch.equal(getattr(first, name), getattr(again, name)), name


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"multi_positive": True}], ids=str)
def test_same_bits_every_run_with_labels(options: dict[str, Any]) -> None:
    """Sums over the members of a label are not left to threads either."""
    labels = torch.arange(3000) % 700
    torch.set_num_threads(2)
    try:
        results = []
        for _ in range(3):
            x, y = (unit(3000, 48, seed).float().requires_grad_() for seed in (1, 2))
            loss = fastclip.clip_loss(x, y, 20.0, labels=labels, **options)
            results.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    finally:
        torch.set_num_threads(1)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


# Options


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions(backend: str, objective: str, labelled: bool) -> None:
    labels = torch.arange(20) // 2 if labelled else None
    x, y = unit(20, 16, 1).float().requires_grad_(), unit(20, 16, 2).float().requires_grad_()

    def loss(reduction: str) -> Tensor:
        return loss_of(objective)(x, y, 9.0, labels=labels, reduction=reduction, backend=backend)

    each = loss("none")
    assert each.shape == (20,)
    torch.testing.assert_close(each.sum(), loss("sum"))
    torch.testing.assert_close(each.mean(), loss("mean"))
    for of_sum, of_each in zip(
        *(torch.autograd.grad(v, (x, y)) for v in (loss("sum"), loss("none").sum())), strict=True
    ):
        torch.testing.assert_close(of_sum, of_each)
    for of_sum, of_mean in zip(
        *(torch.autograd.grad(loss(how), (x, y)) for how in ("sum", "mean")), strict=True
    ):
        torch.testing.assert_close(of_sum, 20 * of_mean, rtol=1e-4, atol=1e-5)
    # A weighted sum of the pairs' losses reaches every row with its own weight.
    weights = torch.linspace(-1, 3, 20)
    ours = torch.autograd.grad((weights * each).sum(), (x, y))
    z = 9.0 * x @ y.T
    if labels is not None:
        z = z.masked_fill((labels[:, None] == labels) & ~torch.eye(20, dtype=torch.bool), -torch.inf)
    if objective == "clip":
        target = torch.arange(20)
        plain = (
            F.cross_entropy(z, target, reduction="none") + F.cross_entropy(z.T, target, reduction="none")
        ) / 2
    else:
        plain = F.softplus(torch.where(torch.eye(20, dtype=torch.bool), -z, z)).sum(dim=1)
    torch.testing.assert_close(each, plain, rtol=1e-5, atol=1e-5)
    for got, want in zip(ours, torch.autograd.grad((weights * plain).sum(), (x, y)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


#: Wide and narrow bands of logits, and gradients of very different size.
BANDS = (
    "two clusters",
    "one row apart",
    "far columns",
    "M < N, scale 100",
    "fits, margin 20",
    "fits, margin 80",
)


@pytest.mark.parametrize("upstream", [1e-20, 65536.0, 1e8, 1e20])
@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_upstream_gradient(backend: str, objective: str, name: str, upstream: float) -> None:
    """Loss scaling (65536 is GradScaler's start) and tiny weights neither overflow nor flush what they multiply."""
    judged = judge(objective, name, torch.float32)
    assert judged.violations(run(fused(backend), judged.case, torch.float32, upstream)) == []


@pytest.mark.parametrize(
    "make", [float, torch.tensor, lambda v: torch.tensor([v]), lambda v: torch.tensor([[v]])]
)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_and_bias_as_numbers_or_tensors(backend: str, objective: str, make: Callable) -> None:
    x, y = unit(9, 16, 1).float(), unit(9, 16, 2).float()
    expected = loss_of(objective)(x, y, torch.tensor(7.0), logit_bias=torch.tensor(-3.0), backend=backend)
    assert torch.equal(loss_of(objective)(x, y, make(7.0), logit_bias=make(-3.0), backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=short)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_scalars_have_their_shape_and_dtype(backend: str, dtype: torch.dtype) -> None:
    x, y = unit(9, 16, 1).float(), unit(9, 16, 2).float()
    scale, bias = (torch.tensor([v], dtype=dtype, requires_grad=True) for v in (7.0, -3.0))
    fastclip.siglip_loss(x, y, scale, logit_bias=bias, backend=backend).backward()
    for leaf in (scale, bias):
        assert leaf.grad is not None
        assert leaf.grad.shape == (1,)
        assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_ignores_the_bias(backend: str) -> None:
    x, y = unit(9, 16, 1).float(), unit(9, 16, 2).float()
    bias = torch.tensor(-10.0, requires_grad=True)
    loss = fastclip.clip_loss(x, y, 7.0, logit_bias=bias, backend=backend)
    loss.backward()
    torch.testing.assert_close(loss, fastclip.clip_loss(x, y, 7.0, backend=backend), rtol=1e-5, atol=1e-5)
    assert bias.grad is not None
    assert bias.grad.abs() < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_locked_towers(backend: str, objective: str) -> None:
    """Gradients that nobody asks for are not there, and the others are the same without them."""
    case = random(20, 30, 16, objective=objective)
    full = run(fused(backend), case, torch.float32)
    for locked in ("x", "y"):
        x, y = (features.float().requires_grad_() for features in (case.x, case.y))
        free = y if locked == "x" else x
        (x if locked == "x" else y).requires_grad_(False)
        loss = loss_of(objective)(x, y, case.scale, backend=backend)
        (gradient,) = torch.autograd.grad(loss, free)
        assert torch.equal(gradient.double(), full.dy if locked == "x" else full.dx)
    assert not loss_of(objective)(x.detach(), y.detach(), case.scale, backend=backend).requires_grad


@pytest.mark.parametrize("integers", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_of_any_integer_kind(backend: str, integers: torch.dtype) -> None:
    x, y = unit(9, 16, 1).float(), unit(9, 16, 2).float()
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1])
    expected = fastclip.clip_loss(x, y, 7.0, labels=labels, backend=backend)
    assert torch.equal(fastclip.clip_loss(x, y, 7.0, labels=labels.to(integers), backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_are_compared_whole(backend: str) -> None:
    """Ids that agree in their lower 32 bits, or as float32, are different ids."""
    x, y = unit(4, 16, 1).float(), unit(4, 16, 2).float()
    labels = torch.tensor([1, 1 + 2**32, 2**24, 2**24 + 1])
    expected = fastclip.clip_loss(x, y, 7.0, backend=backend)
    assert torch.equal(fastclip.clip_loss(x, y, 7.0, labels=labels, backend=backend), expected)


@pytest.mark.parametrize("name", ["label smoothing", "label smoothing, labels"])
@pytest.mark.parametrize("smoothing", [1e-3, 0.5, 0.99])
@pytest.mark.parametrize("backend", BACKENDS)
def test_label_smoothing(backend: str, smoothing: float, name: str) -> None:
    judged = Judge.of(replace(REGIMES[name](), label_smoothing=smoothing), torch.float32)
    assert judged.violations(judged.run(fused(backend))) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_label_smoothing_of_pairs_whose_labels_differ(backend: str) -> None:
    """A pair is a positive whatever its two labels say; the mean over its row includes it once."""
    rows, cols = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 3, 2, 1])
    case = Case(unit(4, 16, 1), unit(5, 16, 2), 7.0, labels=(rows, cols), label_smoothing=0.3)
    judged = Judge.of(case, torch.float32)
    assert judged.violations(judged.run(fused(backend))) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalising_here_or_before_is_the_same(backend: str) -> None:
    x, y = normal(20, 30, 1).float().requires_grad_(), normal(20, 30, 2).float().requires_grad_()
    fused_norms = fastclip.clip_loss(x, y, 20.0, normalize=True, backend=backend)
    before = fastclip.clip_loss(F.normalize(x, dim=1), F.normalize(y, dim=1), 20.0, backend=backend)
    torch.testing.assert_close(fused_norms, before)
    for ours, theirs in zip(
        *(torch.autograd.grad(loss, (x, y)) for loss in (fused_norms, before)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


# The modules


@pytest.mark.parametrize("module", [fastclip.ClipLoss, fastclip.SigLipLoss])
def test_modules_are_the_functions(module: type[torch.nn.Module]) -> None:
    x, y, scale, bias = unit(9, 16, 1).float(), unit(9, 16, 2).float(), torch.tensor(7.0), torch.tensor(-2.0)
    function = fastclip.clip_loss if module is fastclip.ClipLoss else fastclip.siglip_loss
    loss = module()
    expected = function(x, y, scale, logit_bias=bias)
    assert torch.equal(loss(x, y, scale, bias), expected)
    assert torch.equal(loss(x, y, scale, logit_bias=bias), expected)
    answer = loss(image_features=x, text_features=y, logit_scale=scale, logit_bias=bias, output_dict=True)
    assert list(answer) == ["contrastive_loss"]
    assert torch.equal(answer["contrastive_loss"], expected)
    assert torch.equal(
        module(normalize=True)(3 * x, 2 * y, scale, bias),
        function(3 * x, 2 * y, scale, logit_bias=bias, normalize=True),
    )


def test_modules_accept_open_clips_constructors() -> None:
    fastclip.ClipLoss(
        local_loss=True, gather_with_grad=True, cache_labels=True, rank=0, world_size=1, use_horovod=False
    )
    fastclip.SigLipLoss(cache_labels=True, rank=0, world_size=1, dist_impl="gather")
    assert "normalize=True" in repr(fastclip.ClipLoss(normalize=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_log_sum_exp_leaves_out_what_shares_a_label(backend: str, normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 5, generator=generator) for rows in (7, 12))
    labels = torch.arange(7) % 3, torch.arange(12) % 4
    features = [t.clone().requires_grad_() for t in (x, y)]
    value = fastclip.functional.log_sum_exp(
        *features, 3.0, labels=labels, normalize=normalize, backend=backend
    )
    value.cos().sum().backward()
    exact = [t.double().requires_grad_() for t in (x, y)]
    u, v = (F.normalize(t, dim=1) if normalize else t for t in exact)
    z = 3 * (u @ v.T).masked_fill(labels[0][:, None] == labels[1], -torch.inf)
    z.logsumexp(dim=1).cos().sum().backward()
    torch.testing.assert_close(value.double(), z.logsumexp(dim=1), rtol=1e-5, atol=1e-5)
    for ours, truth in zip(features, exact, strict=True):
        assert ours.grad is not None and truth.grad is not None
        assert (ours.grad - truth.grad).norm() < 1e-4 * truth.grad.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_without_keys_has_no_gradient(backend: str) -> None:
    x, y = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([0, 1]), torch.tensor([1, 1, 1])
    value = fastclip.functional.log_sum_exp(x, y, 3.0, labels=labels, backend=backend)
    assert value[0].isfinite() and value[1] == -torch.inf
    value.nan_to_num(neginf=0).sum().backward()
    assert x.grad is not None and y.grad is not None
    assert x.grad[0].abs().max() > 0 and (x.grad[1] == 0).all() and y.grad.isfinite().all()
