"""The numerical contract: how wrong a loss and its gradients may be, and the oracle that says how wrong they are.

    X    the reference backend in float64 on the same rounded inputs (the oracle; tests/test_acceptance.py checks it)
    O    what is judged
    E    plain torch's formula in the inputs' dtype
    E32  plain torch in float32 on the upcast inputs; e32, e32row its relative L2 errors (whole, worst row)

E and E32 are samples of a random error, and one sample's largest entry is noise: of kernels as exact as plain torch,
one in forty would fail by a few per cent against one sample. So there are three, the features taken in three orders,
and the worst of them counts.

With u = 2^-24, 2^-8, 2^-11 and c = 1e-6, 4e-3, 1e-3 for float32, bfloat16, float16, a gradient dx or dy must satisfy

    (1)  max|O - X|   <= 2 max|E - X| + 4u max|X|
    (2)  ||O - X||    <= (2 e32 + c) ||X||
    (3)  ||O - X||_r  <= (2 e32row + 8c) ||X||_r                 for every row r

and, with S the unscaled similarities, z = scale S + bias, max|z| = scale max|S| + |bias| and G = dL/dz,

    loss     |O - X| <= 2^-21 max(1, max|z| max(1, sum|G|) + ln N, X)
    dscale   |O - X| <= 2^-22 (max(1, max|z|) sum|G S| + mean|S_ii|)
    dbias    the same with S = 1

With many positives fastclip adds the gradient of a mean of logits to that of a log-sum-exp, two roundings more: (1)
grows by 4 2^-24 of the largest entry of that term.

Notes. sum|G| is at most 2 for the softmax; a sigmoid row's value is a sum of N terms and grows with them. For float64
all relative bounds are 1e-12. Where max|X| < 1e-12 the gradient is saturated: finite, and at most 1e-6, or two
roundings of the terms that cancel in it (equal texts at scale 100: 50 - 50). Where E is not finite, (1) asks nothing.
Where E32 lost its digits (a model that fits its batch), its error counts as no more than a few roundings of logits
explain, 2^-20 max(1, max|z|) scale sum_j |G_rj| ||y_j||. No bound is absolute, and none leans on E alone: either kind
accepts wrong kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import NAMES, Case, Loss, Result, eager, from_logits, fused, positive_weights, run

#: (u, c) of the rule, by the dtype of the features.
ROUNDING = {torch.float32: (2.0**-24, 1e-6), torch.bfloat16: (2.0**-8, 4e-3), torch.float16: (2.0**-11, 1e-3)}

SATURATED, SATURATED_LIMIT = 1e-12, 1e-6


@dataclass(frozen=True)
class Judge:
    """A case in one dtype with all that an answer is compared with: X, E and E32, and the magnitudes of the bounds.

    ``upstream`` is the upstream gradient of `run`, by which results are divided again. ``dx_terms`` (M,) and
    ``dy_terms`` (N,) are what the norms of a row's gradient would be if nothing cancelled in it.
    """

    case: Case
    dtype: torch.dtype
    exact: Result
    plain: tuple[Result, ...]
    plain32: tuple[Result, ...]
    upstream: float
    z_max: float
    g_sum: float
    gs_sum: float
    s_own: float
    term: float
    dx_terms: Tensor
    dy_terms: Tensor

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype) -> Judge:
        """Round a case to `dtype` and work out the right answer and plain torch's."""
        case = case.rounded(dtype)
        x, y = (F.normalize(t, dim=1) if case.normalize else t for t in (case.x, case.y))
        s = x @ y.T
        z = (case.scale * s + (case.bias or 0.0)).requires_grad_()
        (g,) = torch.autograd.grad(from_logits(case, z), z)
        exact = run(fused("reference"), case, torch.float64)
        upstream = _upstream(exact, dtype)
        return cls(
            case=case,
            dtype=dtype,
            exact=exact,
            plain=_samples(case, dtype, min(upstream, 2.0**15)),  # its loss is a float16 number itself
            plain32=_samples(case, torch.float32, 1.0),
            upstream=upstream,
            z_max=abs(case.scale) * s.abs().max().item() + abs(case.bias or 0.0),
            g_sum=g.abs().sum().item(),
            gs_sum=(g * s).abs().sum().item(),
            s_own=s.diagonal(case.diagonal).abs().mean().item(),
            term=_term(case) if case.objective == "clip_multi" else 0.0,
            dx_terms=abs(case.scale) * (g.abs() @ y.norm(dim=1)) * _inverse_norm(case, case.x),
            dy_terms=abs(case.scale) * (g.abs().T @ x.norm(dim=1)) * _inverse_norm(case, case.y),
        )

    def run(self, loss: Loss, device: str = "cpu") -> Result:
        """Put a loss to the test."""
        return run(loss, self.case, self.dtype, self.upstream, device)

    def violations(self, ours: Result) -> list[str]:
        """Return the bounds that a result breaks, each as a line that says by how much; empty means accepted."""
        return self.verdict(ours).violations

    def verdict(self, ours: Result) -> Verdict:
        """Hold a result against every bound."""
        found = Verdict()
        for name in NAMES:
            o, x = getattr(ours, name), getattr(self.exact, name)
            if (o is None) != (x is None) or (o is not None and o.shape != x.shape):
                found.add(f"{name}: shape", 1, 0)
            elif o is not None and not o.isfinite().all():
                found.add(f"{name}: not finite", math.inf, 0)
        if ours.loss < 0:
            found.add("loss: negative", -ours.loss.item(), 0)
        if not found.violations:
            self._check_gradient(found, "dx", ours.dx)
            self._check_gradient(found, "dy", ours.dy)
            self._check_scalars(found, ours)
        return found

    def _check_scalars(self, found: Verdict, ours: Result) -> None:
        exact, double = self.exact, self.dtype == torch.float64
        z_max = max(1.0, self.z_max)
        loss = max(1.0, self.z_max * max(1.0, self.g_sum) + math.log(len(self.case.y)), exact.loss.item())
        found.check("loss", ours.loss - exact.loss, (1e-12 if double else 2.0**-21) * loss)
        dscale = z_max * self.gs_sum + self.s_own
        found.check("dscale", ours.dscale - exact.dscale, (1e-12 if double else 2.0**-22) * dscale)
        if ours.dbias is not None and exact.dbias is not None:
            dbias = z_max * self.g_sum + 1
            found.check("dbias", ours.dbias - exact.dbias, (1e-12 if double else 2.0**-22) * dbias)

    def _check_gradient(self, found: Verdict, name: str, ours: Tensor) -> None:
        exact = getattr(self.exact, name)
        size, error = exact.abs().max().item(), ours - exact
        if size < SATURATED:
            limit = max(SATURATED_LIMIT, 2.0**-23 * getattr(self, f"{name}_terms").max().item())
            found.check(f"{name}: saturated", ours, limit)
            return
        if self.dtype == torch.float64:
            found.check(name, error, 1e-12 * size)
            return
        u, c = ROUNDING[self.dtype]
        plain_errors = torch.stack([getattr(plain, name) - exact for plain in self.plain])
        plain_error = plain_errors.abs().max().nan_to_num(nan=torch.inf).item()
        largest = 2 * plain_error + 4 * u * size + 4 * 2.0**-24 * self.term
        found.check(f"{name} (1) largest entry", error, largest)
        rows, terms = exact.norm(dim=1), getattr(self, f"{name}_terms")
        # What a kernel cannot hold is nobody's error: of the result half the smallest subnormal number of its dtype in
        # each of D entries, of coefficients what lies below float32's normal numbers.
        finfo = torch.finfo(self.dtype)
        lost = finfo.smallest_normal * finfo.eps / 2 * math.sqrt(exact.shape[1])
        lost += 2.0**-126 * _term_size(self.case, name)
        lost /= self.upstream
        errors32 = torch.stack([getattr(plain, name) - exact for plain in self.plain32])
        explained = 2.0**-20 * max(1.0, self.z_max) * terms
        e32 = min(explained.norm().item(), errors32.norm(dim=(1, 2)).max().item())
        e32_row = (errors32.norm(dim=2) / rows)[:, rows > lost].max() * rows
        found.check(f"{name} (2) whole", error.norm(), 2 * e32 + c * exact.norm().item())
        bound = 2 * torch.minimum(explained, e32_row) + 8 * c * rows + lost
        found.check(f"{name} (3) worst row", error.norm(dim=1), bound)


def _term_size(case: Case, name: str) -> float:
    """Return what a coefficient of 1 in all entries of a row would add to its gradient."""
    own, others = (case.x, case.y) if name == "dx" else (case.y, case.x)
    partners = others.norm(dim=1) * _inverse_norm(case, others)
    return (abs(case.scale) * partners.sum() * _inverse_norm(case, own).max()).item()


def _inverse_norm(case: Case, features: Tensor) -> Tensor:
    return 1 / features.norm(dim=1).clamp_min(1e-12) if case.normalize else torch.ones(len(features)).double()


def _term(case: Case) -> float:
    """Return the largest entry of the gradient of the positives' mean logit alone."""

    def positives(case: Case, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        if case.normalize:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        shared = case.labels[0][:, None] == case.labels[1] if case.labels is not None else torch.tensor(False)
        weights = positive_weights(shared) + positive_weights(shared.T).T
        return (scale * x @ y.T * weights).sum() / 2

    result = run(positives, replace(case, bias=None), torch.float64)
    return max(result.dx.abs().max().item(), result.dy.abs().max().item())


def _samples(case: Case, dtype: torch.dtype, upstream: float) -> tuple[Result, ...]:
    """Evaluate plain torch on the features in three orders: the same numbers, other roundings."""
    width, results = case.x.shape[1], []
    for order in (torch.arange(width), torch.arange(width).flip(0), torch.arange(width).roll(width // 2)):
        result = run(eager, replace(case, x=case.x[:, order], y=case.y[:, order]), dtype, upstream)
        back = order.argsort()
        results.append(replace(result, dx=result.dx[:, back], dy=result.dy[:, back]))
    return tuple(results)


class Verdict:
    """What became of every bound: the share of it that was used up, and a line for each that was broken."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.violations: list[str] = []

    def check(self, what: str, error: Tensor, bound: float | Tensor) -> None:
        """Compare errors with their bound, or each with its own."""
        error = error.abs().flatten()
        bounds = torch.as_tensor(bound, dtype=error.dtype).expand_as(error)
        share = torch.where(error == 0, 0.0, error / bounds).nan_to_num(nan=torch.inf)
        worst = share.argmax()
        self.shares[what] = share[worst].item()
        if not (error <= bounds).all():
            self.add(what, error[worst].item(), bounds[worst].item())

    def add(self, what: str, error: float, bound: float) -> None:
        """Note a broken bound."""
        self.violations.append(f"{what}: error {error:.3g} exceeds {bound:.3g}")


def _upstream(exact: Result, dtype: torch.dtype) -> float:
    """Return an upstream gradient (a power of two) that keeps float16 gradients in range; 1 for other dtypes."""
    largest = max(exact.dx.abs().max().item(), exact.dy.abs().max().item())
    if dtype != torch.float16 or largest < SATURATED:
        return 1.0
    return 2.0 ** (12 - math.floor(math.log2(largest)))
