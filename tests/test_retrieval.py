"""Blockwise retrieval against brute force over the whole similarity matrix."""

import pytest
import torch
import torch.nn.functional as F

import fastclip
from fastclip.backends import cpu, reference
from tests.places import places

BACKENDS = [name for name in fastclip.available_backends() if name in ("reference", "cpu")]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (cpu.CpuBackend, reference.ReferenceBackend):
        monkeypatch.setattr(backend, "block_shape", lambda self, m, n: (40, 70))


def features(
    m: int, n: int, width: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * 1000 + n)
    x, y = torch.randn(m, width, generator=generator), torch.randn(n, width, generator=generator)
    return F.normalize(x, dim=1).to(dtype), F.normalize(y, dim=1).to(dtype)


def brute_ranks(s: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    best = s.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    ranks = (~(s < best) & ~right).sum(dim=1) + 1
    return torch.where(right.any(dim=1), ranks, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (130, 75)])
def test_topk_is_that_of_the_whole_matrix(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, y = features(*shape, dtype=dtype)
    k = min(7, shape[1])
    values, indices = fastclip.similarity_topk(x, y, k, backend=backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (x.to(wide) @ y.to(wide).T).topk(k, dim=1)
    torch.testing.assert_close(values, expected.values)
    torch.testing.assert_close((x.to(wide) @ y.to(wide).T).gather(1, indices), values)
    assert (indices.sort(dim=1).values.diff(dim=1) > 0).all()  # no key twice


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_of_pairs(backend: str, dtype: torch.dtype) -> None:
    x, y = features(173, 173, dtype=dtype)
    y = F.normalize(x + 0.8 * y, dim=1)
    ranks = fastclip.retrieval_ranks(x, y, backend=backend)
    s, right = x @ y.T, torch.eye(173, dtype=torch.bool)
    assert torch.equal(ranks.image_to_text, brute_ranks(s, right))
    assert torch.equal(ranks.text_to_image, brute_ranks(s.T, right))
    assert 1 < ranks.image_to_text.max() < 173


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_with_several_captions_an_image_and_some_without(backend: str) -> None:
    x, y = features(90, 310)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 60, (90,), generator=generator)
    cols = torch.randint(20, 80, (310,), generator=generator)
    ranks = fastclip.retrieval_ranks(x, y, (rows, cols), backend=backend)
    s, right = x @ y.T, rows[:, None] == cols
    assert torch.equal(ranks.image_to_text, brute_ranks(s, right))
    assert torch.equal(ranks.text_to_image, brute_ranks(s.T, right.T))
    assert (ranks.image_to_text == 0).any()  # without a right answer, and left out of the metrics
    answered = ranks.image_to_text[ranks.image_to_text > 0].double()
    metrics = ranks.metrics()
    assert metrics["image_to_text_R@5"] == pytest.approx((answered <= 5).double().mean().item())
    assert metrics["image_to_text_mean_rank"] == pytest.approx(answered.mean().item())
    assert metrics["image_to_text_median_rank"] == pytest.approx(answered.quantile(0.5).item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_and_nan_count_against_the_model(backend: str) -> None:
    equal = torch.ones(50, 4)
    assert (fastclip.retrieval_ranks(equal, equal, backend=backend).image_to_text == 50).all()
    x, _ = features(50, 1)
    broken = x.clone()
    broken[7] = torch.nan
    ranks = fastclip.retrieval_ranks(broken, x, backend=backend)
    assert ranks.image_to_text[7] == 50
    assert (ranks.text_to_image[torch.arange(50) != 7] == 2).all()  # behind the broken picture


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalize_ranks_by_cosine(backend: str) -> None:
    x, y = features(60, 60)
    sizes = torch.linspace(0.1, 30, 60)[:, None]
    assert torch.equal(
        fastclip.retrieval_ranks(x * sizes, y / sizes, normalize=True, backend=backend).text_to_image,
        fastclip.retrieval_ranks(x, y, backend=backend).text_to_image,
    )


def test_nothing_of_the_matrix_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (cpu.CpuBackend, reference.ReferenceBackend):
        monkeypatch.setattr(backend, "block_shape", lambda self, m, n: (300, 500))
    x, y = features(3000, 3000, width=4)
    with torch.profiler.profile(profile_memory=True) as profile:
        fastclip.retrieval_ranks(x, y)
        fastclip.similarity_topk(x, y, 3)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 3000 * 3000 * 4 / 20


def test_bad_input_is_named() -> None:
    x, y = features(5, 8)
    with pytest.raises(ValueError, match="k must lie between 1 and the number of keys, 8, got 9"):
        fastclip.similarity_topk(x, y, 9)
    with pytest.raises(ValueError, match="without labels needs as many rows as columns, got 5 and 8"):
        fastclip.retrieval_ranks(x, y)
    with pytest.raises(ValueError, match="none in common"):
        fastclip.retrieval_ranks(x, y, (torch.zeros(5, dtype=torch.int64), torch.ones(8, dtype=torch.int64)))
    with pytest.raises(ValueError, match="text_features has 3 features"):
        fastclip.retrieval_ranks(x, y[:, :3])


@pytest.mark.slow
@pytest.mark.skipif(("triton", "cpu") not in places(), reason="needs Triton's interpreter")
def test_on_the_triton_backend() -> None:
    x, y = features(45, 33)
    y = F.normalize(x[:33] + 0.8 * y, dim=1)
    values, indices = fastclip.similarity_topk(x, y, 4, backend="triton")
    expected = fastclip.similarity_topk(x, y, 4, backend="reference")
    torch.testing.assert_close(values, expected[0])
    torch.testing.assert_close((x[:, None] * y[indices]).sum(dim=2), values)
    ranks = fastclip.retrieval_ranks(x[:33], y, backend="triton")
    exact = fastclip.retrieval_ranks(x[:33], y, backend="reference")
    assert torch.equal(ranks.image_to_text, exact.image_to_text)
    assert torch.equal(ranks.text_to_image, exact.text_to_image)
