"""The drop-in modules on their own, and the recipes of the guides: no package beside torch is needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastclip
import fastclip.open_clip as ours
from fastclip.distillation import distill_loss
from fastclip.grad_cache import cached_backward
from tests.dropins.shapes import Shapes
from tests.dropins.steps import Step, compare, step

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 14.3


def features(rows: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x, dim=1).to(dtype)


# open_clip's names


def test_the_public_losses_are_the_same_classes() -> None:
    assert ours.ClipLoss is fastclip.ClipLoss
    assert ours.SigLipLoss is fastclip.SigLipLoss


def test_neither_open_clip_nor_transformers_is_needed() -> None:
    program = """
import sys
sys.modules["open_clip"] = sys.modules["transformers"] = None
import fastclip.hf, fastclip.open_clip
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_output_dict_has_open_clips_keys() -> None:
    x, y = features(6, 8), features(6, 8, 1)
    model_out = {"image_features": x, "text_features": y, "logit_scale": torch.tensor(SCALE)}
    teacher = {f"dist_{name}": value for name, value in model_out.items()}
    captions = {"logits": torch.randn(6, 4, 10), "labels": torch.randint(10, (6, 4))}
    answers = {
        ours.ClipLoss(): model_out,
        ours.SigLipLoss(): {**model_out, "logit_bias": torch.tensor(-10.0)},
        ours.CoCaLoss(2.0, 1.0): {**model_out, **captions},
        ours.DistillClipLoss(): {**model_out, **teacher},
    }
    keys = [list(loss(**given, output_dict=True)) for loss, given in answers.items()]
    assert keys == [
        ["contrastive_loss"],
        ["contrastive_loss"],
        ["contrastive_loss", "caption_loss"],
        ["contrastive_loss", "distill_loss"],
    ]
    for loss, given in answers.items():
        plain = loss(**given)
        parts = plain if isinstance(plain, tuple) else (plain,)
        assert torch.equal(torch.stack(parts), torch.stack(list(loss(**given, output_dict=True).values())))


def test_coca_without_a_contrastive_weight_skips_that_loss() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.randint(1, 5, (2, 3))
    contrastive, caption = ours.CoCaLoss(3.0, 0.0)(None, None, logits, labels, None)
    assert contrastive.item() == 0
    torch.testing.assert_close(caption, 3 * F.cross_entropy(logits.permute(0, 2, 1), labels, ignore_index=0))


def test_options_reach_the_losses() -> None:
    x, y, scale = 3 * features(6, 8), 3 * features(6, 8, 1), SCALE
    teacher = (x.roll(1, 0), y, scale)
    loss = ours.DistillClipLoss(normalize=True, label_smoothing=0.1, backend="reference")
    contrastive, distill = loss(x, y, scale, *teacher)
    expected = fastclip.clip_loss(x, y, scale, normalize=True, label_smoothing=0.1, backend="reference")
    assert torch.equal(contrastive, expected)
    expected = distill_loss(x, y, scale, *teacher, normalize=True, backend="reference")
    assert torch.equal(distill, expected)
    assert "label_smoothing=0.1" in repr(loss)


def test_an_unknown_dist_impl_is_refused() -> None:
    for known in (None, "bidir", "shift", "reduce", "gather"):
        ours.SigLipLoss(dist_impl=known)
    with pytest.raises(ValueError, match=r"dist_impl must be one of 'bidir'.*'carrier pigeon'"):
        ours.SigLipLoss(dist_impl="carrier pigeon")


# SimCLR


def ntxent(out0: Tensor, out1: Tensor, temperature: float) -> Tensor:
    """Compute SimCLR's loss in plain torch: 2N rows, 2N - 1 columns."""
    x = F.normalize(torch.cat([out0, out1]), dim=1)
    z = (x @ x.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(z, torch.arange(len(x)).roll(len(out0)))


def two_views(loss: Any, dtype: torch.dtype, rows: int = 33) -> Step:
    views = 3 * torch.cat([features(rows, 24), features(rows, 24, 1)])
    leaf = views.to(dtype).requires_grad_()
    return step(lambda: loss(*leaf.chunk(2)), {"views": leaf})


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_ntxent_is_simclrs(temperature: float) -> None:
    found = compare(
        lambda dtype: two_views(lambda a, b: ntxent(a, b, temperature), dtype),
        lambda dtype: two_views(fastclip.NTXentLoss(temperature), dtype),
        1 / temperature,
        ["views"],
    )
    assert found == []


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_ntxent_is_pytorch_metric_learnings(temperature: float) -> None:
    metric_losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = metric_losses.NTXentLoss(temperature)
    found = compare(
        lambda dtype: two_views(metric_losses.SelfSupervisedLoss(theirs), dtype),
        lambda dtype: two_views(fastclip.NTXentLoss(temperature), dtype),
        1 / temperature,
        ["views"],
    )
    assert found == []
    a, b = features(5, 8), features(5, 8, 1)
    by_label = theirs(torch.cat([a, b]), torch.arange(5).repeat(2))
    torch.testing.assert_close(fastclip.NTXentLoss(temperature)(a, b), by_label)


def test_ntxent_builds_no_matrix() -> None:
    with Shapes() as shapes:
        two_views(fastclip.NTXentLoss(), torch.float32, rows=21)
    assert (42, 42) not in shapes.seen


def test_ntxent_of_one_sample_is_0() -> None:
    a = features(1, 8).requires_grad_()
    loss = fastclip.NTXentLoss()(a, features(1, 8, 1))
    loss.backward()
    assert loss.item() == 0
    assert a.grad is not None and not a.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"memory_bank_size": 4096}, "memory_bank_size must be 0, got 4096"),
        ({"memory_bank_size": (4096, 128)}, "memory_bank_size must be 0"),
    ],
)
def test_ntxent_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastclip.NTXentLoss(**options)


def test_ntxent_takes_lightlys_constructor() -> None:
    loss = fastclip.NTXentLoss(0.1, memory_bank_size=(0, 128), gather_distributed=True)
    assert repr(loss) == "NTXentLoss(temperature=0.1)"


# Recipes of the guides


def test_a_memory_bank_is_extra_keys() -> None:
    q, k, bank = features(6, 8), features(6, 8, 1), features(40, 8, 2)
    own, banked = torch.zeros(6, dtype=torch.int64), torch.ones(40, dtype=torch.int64)
    loss = fastclip.info_nce_loss(
        q, torch.cat([k, bank]), temperature=0.1, labels=(own, torch.cat([own, banked]))
    )
    z = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ bank.T], dim=1) / 0.1
    torch.testing.assert_close(loss, F.cross_entropy(z, torch.zeros(6, dtype=torch.int64)))


def test_inf_cls_loss_is_info_nce() -> None:
    q, k = features(6, 8), features(6, 8, 1)
    rows = fastclip.info_nce_loss(q, k, SCALE, reduction="none")
    torch.testing.assert_close(rows, F.cross_entropy(SCALE * q @ k.T, torch.arange(6), reduction="none"))


def test_grad_caches_loss_is_a_function_of_representations() -> None:
    image, text = nn.Linear(5, 8), nn.Linear(7, 8)
    a, b = torch.randn(12, 5), torch.randn(12, 7)

    def loss_fn(*reps: Tensor) -> Tensor:
        return fastclip.clip_loss(*reps, SCALE, normalize=True)

    loss_fn(image(a), text(b)).backward()
    expected = [parameter.grad for parameter in (*image.parameters(), *text.parameters())]
    image.zero_grad(), text.zero_grad()
    cached_backward(loss_fn, (image, a), (text, b), micro_batch_size=5)
    for parameter, grad in zip((*image.parameters(), *text.parameters()), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
