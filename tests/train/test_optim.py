"""Who decays, how the learning rate moves, and what an average of weights is."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastclip.models import CLIP, PRESETS
from fastclip.train.config import OptimConfig
from fastclip.train.optim import (
    AveragedWeights,
    build_optimizer,
    gradient_norm,
    layer_shares,
    learning_rate,
    parameter_groups,
    scale_gradients,
    set_learning_rate,
    warmup_steps,
)


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_only_matrices_and_filters_decay(preset: str) -> None:
    model = CLIP(PRESETS[preset])
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(wd=0.3))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    decayed = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
    free = {names[p] for group in groups if not group["weight_decay"] for p in group["params"]}
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
    groups = parameter_groups(model, OptimConfig())
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
    rates = [learning_rate(step, 110, 10, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(rates) == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 99 / 100))


def test_constant_rate() -> None:
    config = OptimConfig(lr=2.0, warmup=4, lr_scheduler="const")
    assert [learning_rate(step, 10, 5, config) for step in range(10)] == [0.5, 1.0, 1.5] + [2.0] * 7


def test_cooldown() -> None:
    """Epochs of 5 steps: the last two are the cooldown, from the full rate in equal steps to just above the end."""
    config = OptimConfig(
        lr=2.0, warmup=0, lr_scheduler="const-cooldown", epochs_cooldown=2, lr_cooldown_end=1.0
    )
    rates = [learning_rate(step, 20, 5, config) for step in range(20)]
    assert rates == pytest.approx([2.0] * 10 + [2.0 - 0.1 * i for i in range(10)])
    square = OptimConfig(
        lr=2.0, warmup=0, lr_scheduler="const-cooldown", epochs_cooldown=2, lr_cooldown_power=2.0
    )
    assert learning_rate(15, 20, 5, square) == pytest.approx(2.0 * 0.5**2)


@pytest.mark.parametrize("warmup", [None, 0, 8])
def test_without_the_scheduler_the_rate_is_constant_from_the_first_step(warmup: int | None) -> None:
    """open_clip then calls no scheduler at all, so that there is no warm-up either."""
    skipped = OptimConfig(lr=2.0, warmup=warmup, skip_scheduler=True)
    assert {learning_rate(step, 40, 5, skipped) for step in range(40)} == {2.0}


def test_lower_layers_get_a_smaller_share() -> None:
    """The demo's text tower has one block, the tiny image tower has one too: stem, block and head are three steps."""
    model = CLIP(PRESETS["tiny"])
    shares = layer_shares(model, 0.5)
    expected = {
        "visual.conv1.weight": 0.25,
        "visual.positional_embedding": 0.25,
        "visual.class_embedding": 0.25,
        "visual.ln_pre.weight": 0.25,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 0.5,
        "visual.ln_post.weight": 1.0,
        "visual.proj": 1.0,
        "token_embedding.weight": 0.25,
        "positional_embedding": 0.25,
        "transformer.resblocks.0.mlp.c_fc.bias": 0.5,
        "ln_final.weight": 1.0,
        "text_projection": 1.0,
        "logit_scale": 1.0,
    }
    assert {name: shares[name] for name in expected} == expected
    assert set(layer_shares(model, None).values()) == {1.0}

    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 8.0)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[p] / 8.0 for name, p in model.named_parameters()} == shares


def test_deep_towers_count_their_own_blocks() -> None:
    names = [f"visual.transformer.resblocks.{i}.ln_1.weight" for i in range(4)]
    names += [f"transformer.resblocks.{i}.ln_1.weight" for i in range(2)]
    model = nn.Module()
    for name in names:
        owner = model
        *path, last = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, nn.Parameter(torch.ones(2)))
    assert list(layer_shares(model, 0.5).values()) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 4, 1 / 2]


def test_gradient_norm_and_clipping() -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(5))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((2, 2), -1.0)
    assert gradient_norm(parameters).item() == pytest.approx(4.0)
    scale_gradients(parameters, 0.25)
    assert gradient_norm(parameters).item() == pytest.approx(1.0)
    assert parameters[2].grad is None


def test_averaged_weights() -> None:
    """Against the recurrence, written out; in its place in the model for as long as asked."""
    model = nn.Linear(2, 1, bias=False)
    averaged = AveragedWeights(model, 0.5)
    expected = model.weight.detach().double().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight += step
        averaged.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(averaged.weights["weight"].double(), expected)
    own = model.weight.detach().clone()
    with averaged.in_place():
        torch.testing.assert_close(model.weight.detach().double(), expected)
    assert torch.equal(model.weight, own)


def test_default_warmup_fits_short_runs() -> None:
    assert warmup_steps(OptimConfig(), 10**6) == 10_000
    assert warmup_steps(OptimConfig(), 500) == 25
    assert warmup_steps(OptimConfig(warmup=0), 500) == 0
    assert learning_rate(0, 5, 5, OptimConfig(lr=1.0)) == 1.0


def test_layer_decay_counts_the_stages_of_a_resnet_through() -> None:
    with torch.device("meta"):
        shares = layer_shares(CLIP(PRESETS["RN50"]), 0.5)
    assert shares["visual.attnpool.positional_embedding"] == shares["visual.attnpool.c_proj.weight"] == 1
    assert shares["visual.layer4.2.conv1.weight"] == 0.5
    assert shares["visual.layer1.0.conv1.weight"] == 0.5**16  # 3 + 4 + 6 + 3 blocks
    assert shares["visual.conv1.weight"] == shares["visual.bn3.bias"] == 0.5**17
