"""The linear probe: the optimum of its objective, the choice of the penalty, and chance on noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastclip.space import linear_probe


def labelled(n: int = 120, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 10, generator=generator)
    label = torch.arange(n) % classes
    return centres[label] + 0.6 * torch.randn(n, 10, generator=generator), 10 * label + 7


def test_it_finds_the_optimum() -> None:
    x, label = labelled()
    probe = linear_probe(x, label, l2=1e-2)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    logits = F.linear(F.normalize(x, dim=1), weight, bias)
    loss = F.cross_entropy(logits, (label - 7) // 10) + 0.5e-2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert all(gradient.abs().max() < 1e-3 for gradient in gradients)


def test_it_separates_what_can_be_separated_and_names_the_labels() -> None:
    x, label = labelled()
    probe = linear_probe(x[:90], label[:90])
    assert probe.accuracy(x[90:], label[90:]) > 0.9
    assert set(probe.predict(x).tolist()) == {7, 17, 27}
    assert linear_probe(x[:90], label[:90]).weight.equal(probe.weight)


def test_noise_stays_at_chance_and_takes_a_large_penalty() -> None:
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(1))
    label = torch.arange(400) % 4
    probe = linear_probe(x[:200], label[:200], l2=(1e-6, 1e-1))
    assert probe.l2 == 1e-1
    assert probe.accuracy(x[200:], label[200:]) == pytest.approx(0.25, abs=0.09)


def test_errors() -> None:
    x, label = labelled(9)
    with pytest.raises(ValueError, match="all the same"):
        linear_probe(x, torch.ones(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="l2 must be"):
        linear_probe(x, label, l2=())
    with pytest.raises(ValueError, match="one model"):
        linear_probe(x, label, l2=1.0).predict(x[:, :4])
