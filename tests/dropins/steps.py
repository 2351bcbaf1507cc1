"""Training steps, theirs against ours: the same model, batch and loss, and how far apart loss and gradients may be.

In float64 both must say the same to rounding. In float32 ours is held to the rule of tests/acceptance.py, with their
step in float64 as the oracle X and their step in float32 as E and E32. What the rule says of rows is for features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

#: The loss (0-d) and the gradients of leaves, by name; all float64.
Step = dict[str, Tensor]

ROUNDING, C = 2.0**-24, 1e-6
SATURATED, SATURATED_LIMIT = 1e-12, 1e-6


def step(loss: Callable[[], Tensor], leaves: Mapping[str, Tensor]) -> Step:
    """Evaluate a loss and its gradients with respect to leaves; a leaf that it does not use has gradient 0."""
    value = loss()
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    result = {"loss": value.detach().double()}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        result[name] = torch.zeros_like(leaf).double() if grad is None else grad.double()
    return result


def model_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Evaluate a loss and its gradients with respect to a model's parameters."""
    return step(loss, dict(model.named_parameters()))


def differences(theirs: Step, ours: Step) -> list[str]:
    """Return what differs between two float64 steps by more than the rounding of a small model."""
    largest = max(grad.abs().max().item() for name, grad in theirs.items() if name != "loss")
    found = []
    for name, their in theirs.items():
        limit = 1e-12 * max(1.0, their.abs().item()) if name == "loss" else 1e-10 * largest
        error = (ours[name] - their).abs().max().item()
        if not error <= limit:
            found.append(f"{name}: {error:.3g} apart, at most {limit:.3g}")
    return found


def violations(
    theirs: Step, ours: Step, exact: Step, z_max: float, features: Sequence[str] = ()
) -> list[str]:
    """Return the bounds that a float32 step breaks.

    Args:
        theirs, ours: in float32.
        exact: theirs in float64, from the same parameters and inputs.
        z_max: the largest logit.
        features: names of the leaves that are features, whose every row is judged.
    """
    found = []

    def check(what: str, error: Tensor, bound: Tensor | float) -> None:
        bound = torch.as_tensor(bound).expand_as(error)
        if not (error <= bound).all():
            worst = (error / bound).nan_to_num(nan=torch.inf).argmax()
            found.append(f"{what}: {error.flatten()[worst]:.3g} exceeds {bound.flatten()[worst]:.3g}")

    for name, x in exact.items():
        e, o = theirs[name], ours[name]
        error, their_error = (o - x).abs(), (e - x).abs()
        if name == "loss":  # the towers' rounding is in theirs, too
            check(name, error, 2 * their_error + 2.0**-21 * max(1.0, z_max, x.item()))
        elif x.abs().max() < SATURATED:
            check(f"{name} saturated", o.abs(), SATURATED_LIMIT)
        elif x.numel() == 1:  # scale or bias: sums of as many terms as there are logits, S at most 1
            check(name, error, 2 * their_error + 2.0**-22 * (2 * max(1.0, z_max) + 1))
        else:
            check(f"{name} (1)", error, 2 * their_error.max() + 4 * ROUNDING * x.abs().max())
            check(f"{name} (2)", error.norm(), 2 * their_error.norm() + C * x.norm())
            if name in features:
                rows, of_rows, of_theirs = (t.norm(dim=1) for t in (x, error, their_error))
                check(f"{name} (3)", of_rows, (2 * (of_theirs / rows).max() + 8 * C) * rows)
    return found


def compare(
    theirs: Callable[[torch.dtype], Step],
    ours: Callable[[torch.dtype], Step],
    z_max: float,
    features: Sequence[str] = (),
) -> list[str]:
    """Return all complaints about a step, in both dtypes."""
    exact = theirs(torch.float64)
    found = differences(exact, ours(torch.float64))
    return found + violations(theirs(torch.float32), ours(torch.float32), exact, z_max, features)
