"""Fit a linear probe: what can be read off the features by one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.space.checks import check_labels, check_points, check_same_width, unit


@dataclass(frozen=True)
class LinearProbe:
    """A multinomial logistic regression on unit-length features."""

    weight: Tensor  #: (C, D)
    bias: Tensor  #: (C,)
    classes: Tensor  #: int64 (C,), the labels it knows
    l2: float  #: the penalty it was fitted with

    def logits(self, features: Tensor) -> Tensor:
        """Return (N, C) for features (N, D)."""
        check_points("features", features)
        check_same_width(("weight", "features"), self.weight, features)
        return F.linear(unit(features).to(self.weight.dtype), self.weight, self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Return the most probable labels, int64 (N,)."""
        return self.classes[self.logits(features).argmax(1)]

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of features (N, D) whose label (N,) is predicted."""
        return (self.predict(features) == check_labels("labels", labels, features)).float().mean().item()


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    l2: float | Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    steps: int = 200,
) -> LinearProbe:
    """Fit ``argmin_{W,b} mean_i CE(W unit(x_i) + b, label_i) + l2/2 ‖W‖²`` by full-batch L-BFGS.

    Radford et al. (2021), section 3.2, evaluate CLIP so: frozen features, logistic regression, the penalty chosen on
    held-back data. Deterministic.

    Args:
        features: (N, D).
        labels: integers (N,), at least two different ones.
        l2: the penalty, or several to choose from: each is fitted on four fifths, the one with the smallest
            cross-entropy on the fifth that remains is fitted again on all.
        steps: most L-BFGS iterations.

    Raises:
        TypeError, ValueError: no such tensors, only one label, no penalty or a negative one.
    """
    x = unit(check_points("features", features, least=2)).detach()
    classes, label = check_labels("labels", labels, x).unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("labels are all the same; a probe needs at least two classes to tell apart")
    penalties = [l2] if isinstance(l2, int | float) else list(l2)
    if not penalties or any(not penalty >= 0 for penalty in penalties):
        raise ValueError(f"l2 must be a number of at least 0, or some such numbers, got {l2!r}")
    best = penalties[0]
    held = torch.arange(len(x), device=x.device) % 5 == 4
    if len(penalties) > 1 and held.any():
        # Every fifth row of a fixed shuffle, so that an order by label does not hide labels from the fit.
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
        kept, out = order[~held], order[held]
        losses = []
        for penalty in penalties:
            weight, bias = _fit(x[kept], label[kept], len(classes), penalty, steps)
            losses.append(F.cross_entropy(F.linear(x[out], weight, bias), label[out]))
        best = penalties[int(torch.stack(losses).nan_to_num(torch.inf).argmin())]
    weight, bias = _fit(x, label, len(classes), best, steps)
    return LinearProbe(weight, bias, classes, best)


def _fit(x: Tensor, label: Tensor, classes: int, l2: float, steps: int) -> tuple[Tensor, Tensor]:
    """Minimise the objective from zero weights; return W (C, D) and b (C,)."""
    with torch.enable_grad():
        weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
        bias = x.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), label) + l2 / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(objective)
    return weight.detach(), bias.detach()
