"""Gradient caching against one big step: same loss, same gradients, same random stream, less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastclip.grad_cache import cached_backward

B = 23  # not a multiple of any micro-batch below


class Pair(nn.Module):
    """Two towers with dropout, and a learned scale and bias."""

    def __init__(self, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(7, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 5))
        self.text = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 5))
        self.log_scale = nn.Parameter(torch.tensor(1.3))
        self.bias = nn.Parameter(torch.tensor(-0.4))
        self.to(dtype)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.log_scale.exp() * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T + self.bias
        target = torch.arange(len(z))
        sigmoid = F.softplus(z).mean()  # so that the bias has a gradient
        return F.cross_entropy(z, target) + F.cross_entropy(z.T, target) + sigmoid


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, 7, generator=generator, dtype=dtype), torch.randn(
        B, 4, generator=generator, dtype=dtype
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [1, 4, 8, 22])
def test_equals_one_big_step(micro: int) -> None:
    a, b = inputs()
    big, small = Pair(), Pair()
    expected = big.loss(big.image(a), big.text(b))
    expected.backward()
    loss = cached_backward(small.loss, (small.image, a), (small.text, b), micro_batch_size=micro)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=0)
    assert gradients(small).keys() == gradients(big).keys() == dict(big.named_parameters()).keys()
    for name, grad in gradients(big).items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(gradients(small)[name], grad, rtol=1e-11, atol=1e-14, msg=name)


@pytest.mark.parametrize("micro", [None, B, 10 * B])
def test_one_pass_when_everything_fits(micro: int | None) -> None:
    a, b = inputs()
    model, calls = Pair(), []

    def image(x: Tensor) -> Tensor:
        calls.append(len(x))
        return model.image(x)

    cached_backward(model.loss, (image, a), (model.text, b), micro_batch_size=micro)
    assert calls == [B]


def test_accumulates_into_existing_gradients() -> None:
    a, b = inputs()
    model = Pair()
    cached_backward(model.loss, (model.image, a), (model.text, b), micro_batch_size=5)
    once = {name: grad.clone() for name, grad in gradients(model).items()}
    cached_backward(model.loss, (model.image, a), (model.text, b), micro_batch_size=5)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, 2 * once[name])


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    """The features of the gradient pass must equal, bit for bit, those the loss saw."""
    a, b = inputs()
    model = Pair(dropout=0.5)
    seen: list[Tensor] = []

    def image(x: Tensor) -> Tensor:
        seen.append(model.image(x))
        return seen[-1]

    torch.manual_seed(5)
    cached_backward(model.loss, (image, a), (model.text, b), micro_batch_size=8)
    first, second = seen[:3], seen[3:]
    assert len(second) == 3
    for x, again in zip(first, second, strict=True):
        assert torch.equal(x, again.detach())
    assert not torch.equal(first[0], model.image(a[:8]).detach())  # the masks do differ from call to call


def test_random_stream_goes_on_as_after_one_pass() -> None:
    a, b = inputs()
    model = Pair(dropout=0.5)
    torch.manual_seed(5)
    with torch.no_grad():
        for x in a.split(8):
            model.image(x)
        for y in b.split(8):
            model.text(y)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cached_backward(model.loss, (model.image, a), (model.text, b), micro_batch_size=8)
    assert torch.equal(torch.rand(3), expected)


def test_works_under_an_ambient_autocast() -> None:
    """Weights cast while no graph is recorded must not reach the gradient pass by autocast's cache."""
    a, b = inputs(torch.float32)
    big, small = Pair(torch.float32), Pair(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        big.loss(big.image(a), big.text(b)).backward()
        cached_backward(small.loss, (small.image, a), (small.text, b), micro_batch_size=8)
    assert gradients(small).keys() == gradients(big).keys()
    for name, grad in gradients(big).items():
        error = (gradients(small)[name] - grad).norm() / grad.norm()
        assert error < 0.03, (name, error)


def test_dict_and_tuple_inputs() -> None:
    a, b = inputs()
    plain, structured = Pair(), Pair()
    cached_backward(plain.loss, (plain.image, a), (plain.text, b), micro_batch_size=6)
    cached_backward(
        structured.loss,
        (lambda batch: structured.image(batch["pixels"]), {"pixels": a, "flag": True}),
        (lambda batch: structured.text(batch[0]), (b, None)),
        micro_batch_size=6,
    )
    for name, grad in gradients(plain).items():
        assert torch.equal(gradients(structured)[name], grad)


def test_a_frozen_tower_costs_no_second_pass_and_gets_no_gradient() -> None:
    a, b = inputs()
    big, small = Pair(), Pair()
    for model in (big, small):
        model.image.requires_grad_(False)
    big.loss(big.image(a), big.text(b)).backward()
    calls: list[int] = []
    differentiated: list[list[bool]] = []

    def image(x: Tensor) -> Tensor:
        calls.append(len(x))
        return small.image(x)

    def loss(*features: Tensor) -> Tensor:
        differentiated.append([x.requires_grad for x in features])
        return small.loss(*features)

    cached_backward(loss, (image, a), (small.text, b), micro_batch_size=6)
    assert calls == [6, 6, 6, 5]
    assert differentiated == [[False, True]]  # nor does the loss make its gradient
    assert gradients(small).keys() == gradients(big).keys()
    for name, grad in gradients(big).items():
        torch.testing.assert_close(gradients(small)[name], grad, rtol=1e-11, atol=1e-14)


def test_only_one_micro_batch_is_alive() -> None:
    """Count the rows of activations that autograd holds at once."""
    a, b = inputs()
    model = Pair()
    alive, peak = 0, 0

    class Rows:
        """Rows that a graph holds, for as long as it does."""

        def __init__(self, count: int) -> None:
            nonlocal alive, peak
            self.count = count
            alive += count
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.count

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
            if x.requires_grad:
                ctx.rows = Rows(len(x))
            return x.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad

    hidden, head = model.image[:3], model.image[3]
    cached_backward(
        model.loss, (lambda x: head(Counted.apply(hidden(x))), a), (model.text, b), micro_batch_size=4
    )
    assert peak == 4
    assert alive == 0


def test_checkpointed_encoders_repeat_their_dropout() -> None:
    """A checkpointed layer draws its mask a third time, in the backward pass; it is the same again."""
    a, b = inputs()
    plain, saving = Pair(dropout=0.5), Pair(dropout=0.5)
    torch.manual_seed(5)
    cached_backward(plain.loss, (plain.image, a), (plain.text, b), micro_batch_size=8)
    torch.manual_seed(5)
    cached_backward(
        saving.loss,
        (lambda x: checkpoint(saving.image, x, use_reentrant=False), a),
        (lambda x: checkpoint(saving.text, x, use_reentrant=False), b),
        micro_batch_size=8,
    )
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(saving)[name], grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("micro", [None, 8])
def test_a_scaler_scales_gradients_and_not_the_loss(micro: int | None) -> None:
    a, b = inputs()
    plain, scaled = Pair(), Pair()
    loss = cached_backward(plain.loss, (plain.image, a), (plain.text, b), micro_batch_size=micro)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    towers = (scaled.image, a), (scaled.text, b)
    assert torch.equal(cached_backward(scaled.loss, *towers, micro_batch_size=micro, scaler=scaler), loss)
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(scaled)[name], 256 * grad, rtol=1e-12, atol=1e-14)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    before = scaled.log_scale.item()
    scaler.step(optimizer)
    assert scaled.log_scale.item() == pytest.approx(before - 0.1 * plain.log_scale.grad.item())  # type: ignore[union-attr]


def test_an_empty_batch_has_gradients_of_zero() -> None:
    """What a rank without rows does; its encoders are called, and take part."""
    a, b = inputs()
    model = Pair()
    cached_backward(
        lambda x, y: (x.sum() + y.sum()) * model.bias,
        (model.image, a[:0]),
        (model.text, b[:0]),
        micro_batch_size=3,
    )
    assert gradients(model).keys() == dict(model.named_parameters()).keys() - {"log_scale"}
    assert all(not grad.any() for grad in gradients(model).values())


def test_errors_name_the_argument() -> None:
    a, b = inputs()
    model = Pair()
    with pytest.raises(ValueError, match="at least one"):
        cached_backward(model.loss)
    with pytest.raises(ValueError, match="micro_batch_size"):
        cached_backward(model.loss, (model.image, a), (model.text, b), micro_batch_size=0)
    with pytest.raises(ValueError, match="rows"):
        cached_backward(model.loss, (model.image, (a, b[:3])), micro_batch_size=2)
    with pytest.raises(ValueError, match="rows"):
        cached_backward(model.loss, (model.image, {}), micro_batch_size=2)
    with pytest.raises(TypeError, match=r"DistributedDataParallel or fully_shard-ed module, .* got Pair"):
        cached_backward(model.loss, (model.image, a), (model.text, b), module=model)
