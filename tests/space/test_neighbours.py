"""Nearest neighbours and the cluster report, against plain torch over the whole matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastclip.space import cluster_report, nearest


def points(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return (
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.1, 9, n)[:, None]
    )


def test_nearest_is_by_cosine_and_leaves_out_what_it_should() -> None:
    x = points(50)
    z = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    cosines, index = nearest(x, x, 5)
    torch.testing.assert_close(cosines, z.topk(5).values)
    assert (index[:, 0] == torch.arange(50)).all()
    cosines, index = nearest(x, x, 5, exclude=torch.arange(50))
    torch.testing.assert_close(cosines, z.fill_diagonal_(-2).topk(5).values)
    assert (index != torch.arange(50)[:, None]).all()


def test_what_is_excluded_need_not_be_near() -> None:
    x = points(30)
    far = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).argmin(1)
    torch.testing.assert_close(nearest(x, x, 4, exclude=far)[1], nearest(x, x, 4)[1])


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k must lie between 1 and 5"):
        nearest(points(3), points(6), k, exclude=torch.zeros(3, dtype=torch.int64))


def test_a_cluster_report_is_what_plain_torch_says() -> None:
    x, label = points(60), torch.arange(60) % 4
    x = x + 3 * points(4, seed=1)[label]
    report = cluster_report(x, label, k=5)
    u = F.normalize(x, dim=1)
    z = u @ u.T
    same = label[:, None] == label
    off = ~torch.eye(60, dtype=torch.bool)
    index = z.masked_fill(~off, -2).topk(5).indices
    assert report.purity == pytest.approx((label[index] == label[:, None]).float().mean().item())
    assert report.purity_chance == pytest.approx(14 / 59)
    assert report.vote_chance == pytest.approx(0.25)
    assert report.within == pytest.approx(z[same & off].mean().item(), abs=1e-5)
    assert report.between == pytest.approx(z[~same].mean().item(), abs=1e-5)
    silhouettes = []
    for i in range(60):
        means = torch.stack([(1 - z[i])[(label == c) & off[i]].mean() for c in range(4)])
        a, b = means[label[i]], means[torch.arange(4) != label[i]].min()
        silhouettes.append((b - a) / max(a, b))
    assert report.silhouette == pytest.approx(torch.stack(silhouettes).mean().item(), abs=1e-5)


def test_shuffled_labels_come_to_chance() -> None:
    x = points(400)
    report = cluster_report(x, torch.arange(400) % 5)
    assert report.purity == pytest.approx(report.purity_chance, abs=0.05)
    assert abs(report.silhouette) < 0.1


def test_equal_points_share_nothing() -> None:
    report = cluster_report(torch.ones(12, 4), torch.arange(12) % 2, k=11)
    assert report.vote == 0  # six of the others, five of its own: equal points vote for nobody
    assert report.silhouette == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        (torch.zeros(10, dtype=torch.int64), ValueError, "at least two groups"),
        (torch.arange(10), ValueError, "two points or more"),
        (torch.zeros(9, dtype=torch.int64), ValueError, r"shape \(10,\)"),
        (torch.zeros(10), TypeError, "integer tensor"),
    ],
)
def test_labels_that_leave_nothing_to_measure(labels: torch.Tensor, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        cluster_report(points(10), labels)
