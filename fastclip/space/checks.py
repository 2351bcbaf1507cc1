"""What callers may hand to this package: every check and its message, once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def check_points(name: str, points: Tensor, *, least: int = 1) -> Tensor:
    """Return points (N, D) after checking that they are a floating-point matrix of at least `least` rows.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another number of dimensions, too few rows, or none of length above 0.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (N, D), got {type(points).__name__}")
    if points.dim() != 2 or points.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(points.shape)}; stack or pool it first")
    if not points.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {points.dtype}; convert it with .float()")
    if len(points) < least:
        raise ValueError(f"{name} must have at least {least} rows, got {len(points)}")
    return points


def check_labels(name: str, labels: Tensor, points: Tensor) -> Tensor:
    """Return labels (N,) as int64 on the device of points (N, D).

    Raises:
        TypeError: not integers.
        ValueError: another shape.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be an integer tensor, one label a row, got {got}")
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({len(points)},), one label for each row, got {tuple(labels.shape)}"
        )
    return labels.to(points.device, torch.int64)


def check_same_width(names: tuple[str, str], x: Tensor, y: Tensor) -> None:
    """Check that two sets of points lie in one space.

    Raises:
        ValueError: of two widths or on two devices.
    """
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{names[1]} has {y.shape[-1]} features but {names[0]} has {x.shape[-1]}; "
            "they must come from one model"
        )
    if x.device != y.device:
        raise ValueError(
            f"{names[1]} is on {y.device} but {names[0]} is on {x.device}; move both to one device"
        )


def unit(x: Tensor) -> Tensor:
    """Return x (…, D) at length 1, in fp32 or wider: what is measured here does not depend on lengths."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def row_blocks(count: int, columns: int, elements: int = 1 << 22) -> list[slice]:
    """Return slices over `count` rows whose products with `columns` columns hold at most `elements` numbers."""
    height = max(1, elements // max(columns, 1))
    return [slice(start, min(start + height, count)) for start in range(0, count, height)]
