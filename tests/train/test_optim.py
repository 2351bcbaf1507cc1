"""Who decays, and how the learning rate moves."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastclip.models import CLIP, PRESETS
from fastclip.train.config import OptimConfig
from fastclip.train.optim import build_optimizer, learning_rate, parameter_groups, warmup_steps


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_only_matrices_and_filters_decay(preset: str) -> None:
    model = CLIP(PRESETS[preset])
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay, rest = parameter_groups(model, 0.3)
    assert decay["weight_decay"] == 0.3
    assert rest["weight_decay"] == 0.0
    decayed = {names[p] for p in decay["params"]}
    free = {names[p] for p in rest["params"]}
    assert decayed | free == set(names.values()) and not decayed & free
    assert "logit_scale" in free
    norms = {
        f"{module}.{kind}"
        for module, part in model.named_modules()
        if isinstance(part, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm))
        for kind in ("weight", "bias")
    }
    assert norms and norms <= free
    assert {name for name in names.values() if name.endswith("bias")} <= free
    embeddings = {name for name in names.values() if "embedding" in name}
    assert {"token_embedding.weight", "positional_embedding"} <= embeddings <= free
    assert {"visual.proj", "text_projection", "transformer.resblocks.0.attn.in_proj_weight"} <= decayed
    convolutions = {
        f"{module}.weight" for module, part in model.named_modules() if isinstance(part, nn.Conv2d)
    }
    assert convolutions and convolutions <= decayed


def test_frozen_parameters_are_left_out() -> None:
    model = CLIP(PRESETS["tiny"])
    model.visual.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    count = sum(p.numel() for group in groups for p in group["params"])
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_decay_moves_matrices_and_nothing_else() -> None:
    model = CLIP(PRESETS["tiny"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, wd=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        decays = p.ndim >= 2 and "embedding" not in name
        expected = before[name] * (1 - 0.1 * 0.5) if decays else before[name]
        torch.testing.assert_close(p.detach(), expected, msg=name)


def test_cosine_with_warmup() -> None:
    config = OptimConfig(lr=2.0, warmup=10)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(rates) == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 99 / 100))


def test_constant_rate() -> None:
    config = OptimConfig(lr=2.0, warmup=4, lr_scheduler="const")
    assert [learning_rate(step, 10, config) for step in range(10)] == [0.5, 1.0, 1.5] + [2.0] * 7


def test_default_warmup_fits_short_runs() -> None:
    assert warmup_steps(OptimConfig(), 10**6) == 10_000
    assert warmup_steps(OptimConfig(), 500) == 25
    assert warmup_steps(OptimConfig(warmup=0), 500) == 0
    assert learning_rate(0, 5, OptimConfig(lr=1.0)) == 1.0
