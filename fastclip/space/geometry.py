"""Measure the shape of a shared space: the gap between its two kinds of points, alignment, uniformity."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastclip.space.checks import check_points, check_same_width, row_blocks, unit


class ModalityGap(NamedTuple):
    """How pictures and texts as wholes lie apart."""

    distance: float  #: between the two means, in [0, 2]
    vector: Tensor  #: (D,), from the mean of the texts to that of the pictures


@torch.no_grad()
def modality_gap(image_features: Tensor, text_features: Tensor) -> ModalityGap:
    """Return ``Δ = mean(unit(image_features)) − mean(unit(text_features))`` and its length.

    Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation Learning",
    2022, section 4.

    Args:
        image_features: (M, D).
        text_features: (N, D).

    Raises:
        TypeError, ValueError: no such matrices, or of two widths.
    """
    check_points("image_features", image_features)
    check_points("text_features", text_features)
    check_same_width(("image_features", "text_features"), image_features, text_features)
    vector = unit(image_features).mean(0) - unit(text_features).mean(0)
    return ModalityGap(vector.norm().item(), vector)


@torch.no_grad()
def alignment(image_features: Tensor, text_features: Tensor, *, alpha: float = 2.0) -> float:
    """Return ``mean_i ‖unit(x_i) − unit(y_i)‖^α``: how near the two of a pair lie; 0 is the best.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", 2020, section 4.1. For α = 2 it is 2 − 2 times the mean cosine.

    Args:
        image_features, text_features: (N, D); row i of one belongs to row i of the other.
        alpha: the exponent, positive.

    Raises:
        TypeError, ValueError: no such matrices, or of two shapes; alpha not positive.
    """
    check_points("image_features", image_features)
    check_points("text_features", text_features)
    check_same_width(("image_features", "text_features"), image_features, text_features)
    if len(image_features) != len(text_features):
        raise ValueError(
            f"image_features has {len(image_features)} rows but text_features has {len(text_features)}; "
            "alignment compares row i with row i"
        )
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    return (unit(image_features) - unit(text_features)).norm(dim=1).pow(alpha).mean().item()


@torch.no_grad()
def uniformity(features: Tensor, *, t: float = 2.0) -> float:
    """Return ``log mean_{i<j} exp(−t ‖unit(x_i) − unit(x_j)‖²)``: how evenly points fill the sphere; lower is better.

    Wang and Isola, 2020 (see `alignment`), section 4.1. Many points spread evenly in many dimensions come to −2t, all
    points in one place to 0. Blockwise: no (N, N) matrix is held.

    Args:
        features: (N, D), N ≥ 2.
        t: inverse width of the kernel, positive.

    Raises:
        TypeError, ValueError: no such matrix; t not positive.
    """
    x = unit(check_points("features", features, least=2))
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    n, parts = len(x), []
    for rows in row_blocks(n, n):
        # ‖x − y‖² = 2 − 2 cos for unit vectors.
        exponent = (x[rows] @ x.T - 1).clamp_max_(0).mul_(2 * t)
        exponent[torch.arange(exponent.shape[0]), torch.arange(rows.start, rows.stop)] = -torch.inf
        parts.append(exponent.flatten().logsumexp(0))
    return torch.stack(parts).logsumexp(0).item() - math.log(n * (n - 1))
