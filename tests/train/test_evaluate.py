"""Retrieval figures against brute force, and against models that must not score."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.data.source import HeldOut
from fastclip.train import evaluate
from fastclip.train.evaluate import Embedded, embed, measure, validation_loss


def world(pictures: int = 40, captions: int = 17, size: int = 4, noise: float = 0.8) -> Embedded:
    generator = torch.Generator().manual_seed(pictures)
    texts = F.normalize(torch.randn(captions, 8, generator=generator), dim=1)
    target = torch.randint(0, captions, (pictures,), generator=generator)
    images = F.normalize(texts[target] + noise * torch.randn(pictures, 8, generator=generator), dim=1)
    others = torch.stack([torch.randperm(captions - 1, generator=generator)[: size - 1] for _ in target])
    groups = torch.cat([target[:, None], others + (others >= target[:, None])], 1)
    shape = (pictures, 3, 2, 2)
    test = HeldOut("w", torch.zeros(shape, dtype=torch.uint8), [f"c{i}" for i in range(captions)], target, groups,
                   "one of four", "R@1")  # fmt: skip
    return Embedded(test, images, texts)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_against_brute_force(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(evaluate, "_BLOCK", block)
    embedded = world()
    result = measure(embedded)
    z = (embedded.images.double() @ embedded.texts.double().T).tolist()
    target = embedded.test.target.tolist()
    image_ranks = [sorted(row, reverse=True).index(row[t]) + 1 for row, t in zip(z, target, strict=True)]
    text_ranks = []
    for caption in sorted(set(target)):
        order = sorted(range(len(z)), key=lambda i: -z[i][caption])
        best = next(place for place, i in enumerate(order) if target[i] == caption)
        text_ranks.append(best + 1)
    for ranks, direction in ((image_ranks, "image_to_text"), (text_ranks, "text_to_image")):
        for k in (1, 5, 10):
            expected = sum(rank <= k for rank in ranks) / len(ranks)
            assert result.metrics[f"{direction}_R@{k}"] == pytest.approx(expected)
        assert result.metrics[f"{direction}_mean_rank"] == pytest.approx(sum(ranks) / len(ranks))
        assert result.metrics[f"{direction}_median_rank"] == statistics.median(ranks)
    groups = embedded.test.groups.tolist()
    right = [max(g, key=lambda c: row[c]) == t for g, row, t in zip(groups, z, target, strict=True)]
    assert result.metrics["choice"] == pytest.approx(sum(right) / len(right))
    top_in = [row.index(max(row)) in g for g, row in zip(groups, z, strict=True)]
    assert result.metrics["group_R@1"] == pytest.approx(sum(top_in) / len(top_in))
    assert 0 < result.metrics["image_to_text_R@1"] < 1  # the case tells right from wrong


@pytest.mark.parametrize("batch_size", [7, 40, 100])
def test_the_loss_of_held_out_pairs_is_open_clips(batch_size: int) -> None:
    """Softmax both ways among so many pairs at a time, the mean over pairs; the last ones are fewer."""
    embedded = world(captions=41)
    test = dataclasses.replace(embedded.test, target=torch.arange(40))  # open_clip knows no equal captions
    total = 0.0
    for start in range(0, 40, batch_size):
        rows = slice(start, min(40, start + batch_size))
        logits = 12.5 * embedded.images[rows].double() @ embedded.texts[rows].double().T
        own = torch.arange(len(logits))
        both = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        total += both.item() / 2 * len(logits)
    loss = validation_loss(dataclasses.replace(embedded, test=test), 12.5, batch_size)
    assert loss == pytest.approx(total / 40, rel=1e-5)


def test_equal_captions_do_not_raise_the_loss_of_held_out_pairs() -> None:
    """Two pictures of one caption: with the other one as a negative, no model could get below log 2."""
    texts = torch.eye(8)[:1]
    test = dataclasses.replace(world().test, target=torch.tensor([0, 0]))
    assert validation_loss(Embedded(test, texts.expand(2, 8), texts), 100.0, 2) == pytest.approx(0, abs=1e-6)


def test_a_perfect_model_scores_everything() -> None:
    result = measure(world(noise=0.0))
    for key, value in result.metrics.items():
        assert value == (1.0 if "R@" in key or key == "choice" else pytest.approx(1.0)), key


@pytest.mark.parametrize("kind", ["one point", "nan"])
def test_a_collapsed_or_broken_model_scores_nothing(kind: str) -> None:
    embedded = world()
    fill = 0.3 if kind == "one point" else float("nan")
    broken = Embedded(
        embedded.test, torch.full_like(embedded.images, fill), torch.full_like(embedded.texts, fill)
    )
    result = measure(broken)
    for key, value in result.metrics.items():
        if "R@" in key or key == "choice":
            assert value == 0.0, key


def test_chance_is_what_random_features_reach() -> None:
    """The chance column against simulation, to four standard errors."""
    embedded = world()
    generator = torch.Generator().manual_seed(0)
    chance = measure(embedded).chance
    runs: dict[str, list[float]] = {key: [] for key in chance}
    for _ in range(400):
        images = F.normalize(torch.randn(embedded.images.shape, generator=generator), dim=1)
        texts = F.normalize(torch.randn(embedded.texts.shape, generator=generator), dim=1)
        for key, value in measure(Embedded(embedded.test, images, texts)).metrics.items():
            if key in runs:
                runs[key].append(value)
    for key, values in runs.items():
        sample = torch.tensor(values)
        assert abs(sample.mean() - chance[key]) < 4 * sample.std() / len(values) ** 0.5, key


def test_any_of_several_captions_is_right() -> None:
    """Two captions a picture: what counts is the better one, and neither is the other's competitor."""
    embedded = world(pictures=12, captions=24)
    test = embedded.test
    test.target, test.groups = torch.arange(0, 24, 2), None
    test.image_labels, test.text_labels = torch.arange(12), torch.arange(24) // 2
    result = measure(embedded)
    z = embedded.images @ embedded.texts.T
    ranks = []
    for i, row in enumerate(z.tolist()):
        others = [value for caption, value in enumerate(row) if caption // 2 != i]
        ranks.append(1 + sum(value > max(row[2 * i : 2 * i + 2]) for value in others))
    assert result.metrics["image_to_text_mean_rank"] == pytest.approx(statistics.mean(ranks))
    assert result.metrics["image_to_text_R@5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / 12)
    text_ranks = [1 + int((z[:, c] > z[c // 2, c]).sum()) for c in range(24)]
    assert result.metrics["text_to_image_mean_rank"] == pytest.approx(statistics.mean(text_ranks))
    assert result.chance["image_to_text_R@1"] == pytest.approx(2 / 24)
    assert result.chance["text_to_image_R@5"] == pytest.approx(5 / 12)


def test_embed_normalises_and_keeps_order() -> None:
    test = world(pictures=10, captions=5).test
    test.images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 2, 2)
    sizes: list[int] = []

    def encode_images(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return torch.stack([images[:, 0, 0, 0].float() + 1, torch.ones(len(images))], 1)

    def encode_texts(texts: list[str]) -> Tensor:
        return torch.tensor([[float(len(text)), 3.0] for text in texts])

    embedded = embed(test, encode_images, encode_texts, batch_size=4)
    assert sizes == [4, 4, 2]
    expected = F.normalize(torch.stack([torch.arange(10) + 1.0, torch.ones(10)], 1), dim=1)
    torch.testing.assert_close(embedded.images, expected)
    assert embedded.texts.shape == (5, 2)
