"""What autograd may do with a loss over ranks: leave parts out, run twice, be refused a second derivative."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import fastclip
from tests.distributed.oracle import Batch, Layout, Loss, differentiate
from tests.distributed.pool import Pool

MODES = ("gather", "ring")
BATCH = Batch.random(Layout.named("uneven", 3))


def shard(requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    own = BATCH.shard(dist.get_rank())
    scale = torch.tensor(own.scale, dtype=torch.float64)
    return tuple(t.clone().requires_grad_(requires_grad) for t in (own.x, own.y, scale))  # type: ignore[return-value]


def loss_of(x: Tensor, y: Tensor, scale: Tensor, mode: str) -> Tensor:
    return fastclip.clip_loss(x, y, scale, group=dist.group.WORLD, mode=mode)


def run_twice(mode: str) -> list[str]:
    x, y, scale = shard()
    loss = loss_of(x, y, scale, mode)
    once = torch.autograd.grad(loss, (x, y, scale), retain_graph=True)
    again = torch.autograd.grad(3 * loss, (x, y, scale))
    wrong = (
        []
        if all(
            torch.equal(3 * a, b) or torch.allclose(3 * a, b, 1e-14) for a, b in zip(once, again, strict=True)
        )
        else ["twice"]
    )
    first, second = loss_of(x, y, scale, mode), loss_of(2 * x, y, scale, mode)  # two in flight
    for each, factor in ((second, 2.0), (first, 1.0)):
        own = torch.autograd.grad(each, (x, y))
        plain = torch.autograd.grad(loss_of(factor * x, y, scale, mode), (x, y))
        wrong += (
            [] if all(torch.equal(a, b) for a, b in zip(own, plain, strict=True)) else [f"in flight {factor}"]
        )
    return wrong


@pytest.mark.parametrize("mode", MODES)
def test_several_backward_passes(ranks: Pool, mode: str) -> None:
    assert ranks.run(run_twice, 3, mode) == [[], [], []]


def run_frozen(mode: str) -> list[str]:
    x, y, scale = shard()
    whole = torch.autograd.grad(loss_of(x, y, scale, mode), (x, y, scale))
    wrong = []
    for kept in ("x", "y", "scale", "xy"):
        inputs = {"x": x.detach(), "y": y.detach(), "scale": scale.detach()}
        live = [inputs[name].requires_grad_() for name in inputs if name in kept or name == kept]
        grads = torch.autograd.grad(loss_of(*inputs.values(), mode), live)
        expected = [g for name, g in zip(inputs, whole, strict=True) if name in kept or name == kept]
        wrong += [] if all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True)) else [kept]
    with torch.no_grad():
        value = loss_of(x, y, scale, mode)
    wrong += [] if not value.requires_grad and torch.equal(value, loss_of(x, y, scale, mode)) else ["no_grad"]
    return wrong


@pytest.mark.parametrize("mode", MODES)
def test_what_needs_no_gradient_changes_no_other(ranks: Pool, mode: str) -> None:
    assert ranks.run(run_frozen, 3, mode) == [[], [], []]


def run_second_derivative(mode: str) -> str:
    x, y, scale = shard()
    (dx,) = torch.autograd.grad(loss_of(x, y, scale, mode), x, create_graph=True)
    try:
        dx.sum().backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_second_derivatives_are_refused(ranks: Pool) -> None:
    assert all("differentiated once" in said for said in ranks.run(run_second_derivative, 3, "gather"))


def run_one_rank_weighted() -> list[Tensor]:
    """Back-propagate different multiples of the loss on different ranks."""
    x, y, scale = shard()
    loss = loss_of(x, y, scale, "gather") * (dist.get_rank() + 1)
    loss.backward()
    return [x.grad, y.grad, scale.grad]  # type: ignore[list-item]


def test_ranks_may_weigh_the_loss_differently(ranks: Pool) -> None:
    """Features get the gradient of the sum of what ranks back-propagate, 1 + 2 + 3 times the loss."""
    exact = differentiate(BATCH, Loss("clip_loss"))
    dx, dy, dscale = zip(*ranks.run(run_one_rank_weighted, 3), strict=True)
    torch.testing.assert_close(torch.cat(dx), 6 * exact.dx)
    torch.testing.assert_close(torch.cat(dy), 6 * exact.dy)
    for each in dscale:
        torch.testing.assert_close(each, 2 * exact.dscale)


def run_autocast() -> bool:
    own = BATCH.shard(dist.get_rank())
    x, y = own.x.float(), own.y.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fastclip.clip_loss(x, y, 1.7, group=dist.group.WORLD)
        smoothed = fastclip.clip_loss(x, y, 100.0, label_smoothing=0.3, group=dist.group.WORLD)
    wide = (x, y.float())
    return torch.equal(mixed, fastclip.clip_loss(*wide, 1.7, group=dist.group.WORLD)) and torch.equal(
        smoothed, fastclip.clip_loss(*wide, 100.0, label_smoothing=0.3, group=dist.group.WORLD)
    )


def test_autocast_takes_the_wider_dtype_and_rounds_nothing(ranks: Pool) -> None:
    assert ranks.run(run_autocast, 3) == [True] * 3


def run_compiled() -> bool:
    own = BATCH.shard(dist.get_rank())
    x, y = own.x.requires_grad_(), own.y

    def step(x: Tensor, y: Tensor) -> Tensor:
        return 2 * fastclip.siglip_loss(x + 0, y, 1.7, group=dist.group.WORLD)

    results = [
        (value, *torch.autograd.grad(value, x))
        for value in (step(x, y), torch.compile(step, backend="eager")(x, y))
    ]
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
def test_compiled_code_leaves_the_loss_alone(ranks: Pool) -> None:
    assert ranks.run(run_compiled, 3, limit=120) == [True] * 3


def run_not_finite(bad: float, function: str) -> list[Tensor]:
    own = BATCH.shard(dist.get_rank())
    x = own.x.float()
    if dist.get_rank() == 1:
        x[0, 0] = bad
    loss = getattr(fastclip, function)(x.requires_grad_(), own.y.float(), 1.7, group=dist.group.WORLD)
    loss.backward()
    return [loss.detach(), x.grad]  # type: ignore[list-item]


@pytest.mark.parametrize("function", ["clip_loss", "siglip_loss"])
def test_not_finite_on_one_rank_is_not_finite_on_all(ranks: Pool, function: str) -> None:
    for bad in (torch.nan, torch.inf):
        for loss, dx in ranks.run(run_not_finite, 3, bad, function):
            assert not loss.isfinite()
            assert function == "siglip_loss" or not dx.isfinite().all()
