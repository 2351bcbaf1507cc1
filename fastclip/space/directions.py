"""Calculate with meanings: between two points, sums and differences of points, directions of an attribute.

All results have length 1, as the space's points are compared by cosine. Inputs are brought to length 1 first, so a
long feature weighs no more than a short one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastclip.space.checks import check_points, check_same_width, unit

_SMALL = 1e-4  # radians, or the length of a sum: below, a direction is rounding noise


def interpolate(
    a: Tensor, b: Tensor, t: float | Tensor, *, mode: Literal["spherical", "linear"] = "spherical"
) -> Tensor:
    """Return points on the way from a to b.

    spherical: ``(sin((1 − t)ω) a + sin(tω) b) / sin ω``, ω the angle between a and b: equal steps of t are equal angles
    (Shoemake, "Animating Rotation with Quaternion Curves", 1985). linear: ``(1 − t) a + t b``, brought to length 1: the
    same way, faster in its middle.

    Args:
        a, b: (…, D), of one shape or broadcastable.
        t: where; 0 is a, 1 is b. A number, or (T,) for T points; beyond [0, 1] it goes on past a or b.
        mode: see above.

    Returns:
        (…, D), or (T, …, D).

    Raises:
        ValueError: a and b point in opposite ways (no way is the shortest), or have two widths.
    """
    check_same_width(("a", "b"), a, b)
    if mode not in ("spherical", "linear"):
        raise ValueError(f"mode must be spherical or linear, got {mode!r}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = torch.broadcast_tensors(unit(a), unit(b))
    # From the chord, which is exact for small angles, where the cosine is not.
    angle = 2 * ((a - b).norm(dim=-1, keepdim=True) / 2).clamp_max(1).asin()
    if bool((angle > torch.pi - _SMALL).any()):
        raise ValueError("a and b point in opposite ways, so there is no shortest way between them")
    at = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    if at.dim():
        at = at.reshape(-1, *[1] * a.dim())
    if mode == "linear":
        return unit((1 - at) * a + at * b).to(dtype)
    wide = angle > _SMALL
    sine = torch.where(wide, angle.sin(), 1)
    first = torch.where(wide, ((1 - at) * angle).sin() / sine, 1 - at)
    second = torch.where(wide, (at * angle).sin() / sine, at)
    return unit(first * a + second * b).to(dtype)


def compose(
    plus: Sequence[Tensor], minus: Sequence[Tensor] = (), *, weights: Sequence[float] | None = None
) -> Tensor:
    """Return the sum of some meanings without others: ``unit(Σ w_i unit(plus_i) − Σ w_j unit(minus_j))``.

    ``compose(plus=[photo_of_a_cat, painting], minus=[photo])`` is near paintings of cats. Pictures and texts may be
    mixed; a difference of two of one kind is free of the gap between the kinds.

    Args:
        plus, minus: features (D,) or (B, D), broadcast against each other.
        weights: one number for each of `plus`, then of `minus`. Default: 1 each.

    Returns:
        (D,) or (B, D).

    Raises:
        ValueError: nothing in plus, weights of another number, two widths, or a sum that is zero.
    """
    terms = [*plus, *minus]
    if not plus:
        raise ValueError("plus is empty; compose needs at least one feature to start from")
    if weights is not None and len(weights) != len(terms):
        raise ValueError(f"weights must have {len(terms)} entries, one a term, got {len(weights)}")
    for i, term in enumerate(terms[1:], 1):
        check_same_width(("the first term", f"term {i + 1}"), terms[0], term)
    signs = [1.0] * len(plus) + [-1.0] * len(minus)
    factors = signs if weights is None else [s * w for s, w in zip(signs, weights, strict=True)]
    dtype = terms[0].dtype
    total = factors[0] * unit(terms[0])
    for factor, term in zip(factors[1:], terms[1:], strict=True):
        total = total + factor * unit(term)
        dtype = torch.promote_types(dtype, term.dtype)
    if bool((total.norm(dim=-1) < _SMALL).any()):
        raise ValueError("plus and minus cancel out: their sum is zero and points nowhere")
    return unit(total).to(dtype)


def parse_sum(expression: str) -> list[tuple[int, str]]:
    """Read "a cat + a hat - a dog", texts joined by + and − with spaces around them, as (sign, text) for `compose`.

    Raises:
        ValueError: a text is missing, or nothing is added.
    """
    expression = expression.strip()
    signed = expression[:1] in "+−-" and expression[1:2].isspace()
    parts = re.split(r"\s([+−-])\s", f" {expression}" if signed else f" + {expression}")[1:]
    terms = [
        (1 if sign == "+" else -1, text.strip()) for sign, text in zip(parts[0::2], parts[1::2], strict=True)
    ]
    if any(not text for _, text in terms) or all(sign < 0 for sign, _ in terms):
        raise ValueError(f'cannot read the sum "{expression}"; write it as "a cat + a hat - a dog"')
    return terms


@dataclass(frozen=True)
class AttributeDirection:
    """The direction in which an attribute grows, between those that lack it and those that have it."""

    vector: Tensor  #: (D,), of length 1
    step: float  #: how far apart the two groups' means lie along it
    threshold: float  #: the middle between them, as a projection onto the vector

    def score(self, features: Tensor) -> Tensor:
        """Return (N,): how much of the attribute features (N, D) have; above 0 is nearer to those with it."""
        check_same_width(("vector", "features"), self.vector, features)
        return unit(features).to(self.vector.dtype) @ self.vector - self.threshold

    def add(self, features: Tensor, strength: float = 1.0) -> Tensor:
        """Return features (N, D) moved by `strength` steps towards having it; −1 takes it away."""
        check_same_width(("vector", "features"), self.vector, features)
        return unit(unit(features) + strength * self.step * self.vector).to(features.dtype)


def attribute_direction(with_it: Tensor, without_it: Tensor) -> AttributeDirection:
    """Return the direction from the mean of what lacks an attribute to the mean of what has it.

    ``v = mean(unit(with_it)) − mean(unit(without_it))``. Best of pairs that differ in the attribute alone: what else
    differs between the groups is in the direction too.

    Args:
        with_it: (M, D).
        without_it: (N, D).

    Raises:
        TypeError, ValueError: no such matrices, or groups with one and the same mean.
    """
    check_points("with_it", with_it)
    check_points("without_it", without_it)
    check_same_width(("with_it", "without_it"), with_it, without_it)
    above, below = unit(with_it).mean(0), unit(without_it).mean(0)
    difference = above - below
    step = float(difference.norm())
    if not step >= _SMALL:
        raise ValueError(
            "with_it and without_it have the same mean, so no direction leads from one to the other"
        )
    vector = difference / step
    return AttributeDirection(vector, step, float((above + below) @ vector) / 2)
