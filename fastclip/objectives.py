"""The objectives, in plain torch: what a loss adds up over the similarity matrix and what its gradient is there.

Logits are ``z = scale * S + bias`` with ``S`` (M, N) the similarities; the positive of row ``i`` is column
``i + diagonal``. Every objective is one forward pass over tiles of ``z`` (statistics of the *negatives*) and one
backward pass (coefficients ``G = dL/dz``). This file turns the first into loss values and into what the second needs.

* softmax: of every row (``rho``) and every column (``kappa``) the negatives' log-sum-exp. ``G`` of a negative is
  ``a_i e^(z - R_i) + b_j e^(z - K_j)``, of a positive ``-a_i s(rho_i - z) - b_j s(kappa_j - z)``.
* sigmoid: of every row the sum of ``softplus(z)`` over negatives. ``G`` of a negative is ``a_i s(z)``, of a positive
  ``-a_i s(-z)``.

``s`` is the logistic function, ``a`` (M,) and ``b`` (N,) the upstream gradients of the row and column values,
``R = log(e^rho + e^z_ii)``, ``K`` likewise.

The positive stays out of the sums, so that a row's loss is ``softplus(rho_i - z_ii)``: no digits cancel when a model
fits its batch. Log-sum-exps are kept as a pair (shift, sum), ``rho = shift + log(sum)``: ``e^(z - shift) / sum`` keeps
the digits that ``e^(z - rho)`` rounds away.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

#: The shift of an empty sum. Finite, so that the difference of two is 0 and not NaN.
EMPTY_SHIFT = -1e30


class Objective(Enum):
    """What is summed over the similarity matrix; a compile-time parameter of every kernel."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    #: The sigmoid where labels, not a diagonal, say which entries are positives; they are part of the sums.
    MULTI_SIGMOID = "multi_sigmoid"


@dataclass
class Sums:
    """Running statistics of one side: ``sum`` of ``e^(z - shift)`` (softmax) or of ``softplus(z)`` (sigmoid).

    Both (M,) or (N,), in the backend's accumulation dtype; nats.
    """

    shift: Tensor
    sum: Tensor

    @classmethod
    def empty(cls, n: int, dtype: torch.dtype, device: torch.device) -> Sums:
        """Return the statistics of no entries at all."""
        shift = torch.full((n,), EMPTY_SHIFT, dtype=dtype, device=device)
        return cls(shift, torch.zeros(n, dtype=dtype, device=device))

    def __getitem__(self, part: slice) -> Sums:
        return Sums(self.shift[part], self.sum[part])

    def merge_(self, shift: Tensor, sum: Tensor) -> None:
        """Bring another block's pair in, rescaling both sums to the larger shift."""
        top = torch.maximum(self.shift, shift)
        self.sum.mul_(torch.exp(self.shift - top)).add_(sum * torch.exp(shift - top))
        self.shift.copy_(top)

    def with_entry(self, z: Tensor) -> Sums:
        """Return the pair with one more logit per row: (shift, sum) of ``R = logaddexp(rho, z)``."""
        top = torch.maximum(self.shift, z)
        return Sums(top, self.sum * torch.exp(self.shift - top) + torch.exp(z - top))

    def balanced(self) -> Sums:
        """Return the same pair with its shift near the log-sum-exp, for kernels that hold both in float32.

        A block's shift may lie far above a row's own logits. It moves by whole numbers, of which the sum's part is
        exact in float64; float32 sums (the reference's) have shifts that are their own largest logit and stay.
        """
        whole = torch.log(self.sum).round().clamp(-700, 0)
        return Sums(self.shift + whole, self.sum * torch.exp(-whole))

    def divisible(self) -> Sums:
        """Return the same, `balanced`; where nothing was summed up, such that coefficients made of it are 0."""
        full, empty = self.balanced(), self.sum == 0
        # The shift lies above every logit then, so that no exponential is infinite, and times 1 all of them are 0.
        return Sums(full.shift.masked_fill(empty, -EMPTY_SHIFT), full.sum.masked_fill(empty, 1))

    def log_sum_exp(self) -> Tensor:
        """Return ``rho = shift + log(sum)``; -inf where nothing was summed."""
        return self.shift + torch.log(self.sum)

    def margin(self, z: Tensor) -> Tensor:
        """Return ``rho - z``, subtracting the shift first: equal shifts leave the small difference exact."""
        # The last term: a positive at infinity is not a perfect fit but NaN, as it is in any other formula.
        return (self.shift - z) + torch.log(self.sum) + 0 * z


@dataclass
class Coefficients:
    """What the backward pass over tiles needs: (shift, factor) per row and column, and G on the positives.

    Softmax: ``G = row.factor e^(z - row.shift) + col.factor e^(z - col.shift)``; sigmoid: ``G = row.factor s(z)``.
    ``positive`` (M,) is None where rows have no positive. ``col_*`` are zeros where columns carry no gradient.
    """

    row_shift: Tensor
    row_factor: Tensor
    col_shift: Tensor
    col_factor: Tensor
    positive: Tensor | None


def values(objective: Objective, sums: Sums, positive: Tensor | None) -> Tensor:
    """Return each row's (or column's) loss in nats; its log-sum-exp where it has no positive.

    Args:
        sums: statistics of the negatives, (M,).
        positive: logits of the positives, (M,), or None.
    """
    if objective is not Objective.SOFTMAX:
        return sums.sum if positive is None else sums.sum + softplus(-positive)
    return sums.log_sum_exp() if positive is None else softplus(sums.margin(positive))


def coefficients(
    objective: Objective,
    rows: Sums,
    cols: Sums | None,
    positive: Tensor | None,
    row_grad: Tensor,
    col_grad: Tensor | None,
    diagonal: int,
    n: int,
) -> Coefficients:
    """Return what turns logits into ``G``, from the statistics and the upstream gradients.

    Args:
        rows: statistics of the rows' negatives, (M,).
        cols: of the columns', (N,), or None for objectives of rows alone.
        positive: logits of the positives, (M,), or None.
        row_grad: gradient of the rows' values, (M,).
        col_grad: of the columns', (N,); ignored on columns without a positive.
        diagonal: the positive of row i is column i + diagonal.
        n: number of columns N.
    """
    m = row_grad.numel()
    # Without a gradient: a shift above every logit, so that exponentials are 0 there and never 0 times infinity.
    no_shift, no_factor = row_grad.new_full((n,), -EMPTY_SHIFT), row_grad.new_zeros(n)
    if objective is not Objective.SOFTMAX:
        on_positive = None if positive is None else -row_grad * torch.sigmoid(-positive)
        return Coefficients(torch.zeros_like(row_grad), row_grad, no_shift, no_factor, on_positive)
    full = rows.divisible() if positive is None else rows.with_entry(positive).balanced()
    on_positive = None if positive is None else -row_grad * torch.sigmoid(rows.margin(positive))
    result = Coefficients(full.shift, row_grad / full.sum, no_shift, no_factor, on_positive)
    if cols is None or col_grad is None:
        return result
    if positive is None:
        full = cols.divisible()
        result.col_shift, result.col_factor = full.shift, col_grad / full.sum
        return result
    own = slice(diagonal, diagonal + m)  # the columns with a positive
    full = cols[own].with_entry(positive).balanced()
    result.col_shift[own], result.col_factor[own] = full.shift, col_grad[own] / full.sum
    on_positive -= col_grad[own] * torch.sigmoid(cols[own].margin(positive))  # type: ignore[operator]
    return result


def softplus(t: Tensor) -> Tensor:
    """Return ``log(1 + e^t)`` without torch's threshold: exact for large, small and infinite ``t``."""
    return t.clamp_min(0) + torch.log1p(torch.exp(-t.abs()))
