"""Gap, alignment and uniformity: the papers' formulas, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastclip.space import alignment, modality_gap, uniformity
from fastclip.space import geometry as module


def points(n: int, seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_formulas() -> None:
    x, y = points(40), points(40, seed=1)
    u, v = F.normalize(x, dim=1), F.normalize(y, dim=1)
    gap = modality_gap(x, y)
    torch.testing.assert_close(gap.vector, u.mean(0) - v.mean(0))
    assert gap.distance == pytest.approx(gap.vector.norm().item())
    assert alignment(x, y) == pytest.approx((2 - 2 * (u * v).sum(1)).mean().item(), rel=1e-5)
    assert alignment(x, x) == 0
    expected = torch.pdist(u).square().mul(-2).exp().mean().log().item()
    assert uniformity(x) == pytest.approx(expected, rel=1e-5)


def test_uniformity_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(50)
    whole = uniformity(x)
    blocks = module.row_blocks
    monkeypatch.setattr(
        module, "row_blocks", lambda count, columns: blocks(count, columns, elements=7 * columns)
    )
    assert uniformity(x) == pytest.approx(whole, rel=1e-6)


def test_extremes() -> None:
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)
    assert modality_gap(torch.eye(3)[:1], -torch.eye(3)[:1]).distance == pytest.approx(2)


def test_errors() -> None:
    with pytest.raises(ValueError, match="row i with row i"):
        alignment(points(3), points(4))
    with pytest.raises(ValueError, match="one model"):
        modality_gap(points(3), points(3)[:, :5])
    with pytest.raises(ValueError, match="at least 2 rows"):
        uniformity(points(1))
    with pytest.raises(ValueError, match="t must be positive"):
        uniformity(points(3), t=0)
    with pytest.raises(TypeError, match="floating point"):
        uniformity(torch.ones(3, 3, dtype=torch.int64))
