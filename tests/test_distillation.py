"""Distillation against softmax cross-entropy between whole similarity matrices in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import fastclip
from fastclip.backends import cpu, reference

BACKENDS = fastclip.available_backends()

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (cpu.CpuBackend, reference.ReferenceBackend):
        monkeypatch.setattr(backend, "block_shape", lambda self, m, n: (24, 40))


def batch(m: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(m + n)
    draw = lambda rows, width: torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    student = {"image_features": draw(m, 12).requires_grad_(), "text_features": draw(n, 12).requires_grad_()}
    scale = torch.tensor(
        9.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True
    )
    teacher = {"teacher_image_features": draw(m, 20), "teacher_text_features": draw(n, 20)}
    return {**student, "logit_scale": scale, **teacher, "teacher_logit_scale": 14.0}


def oracle(inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    wide = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    x, y, scale = (wide[k].requires_grad_() for k in ("image_features", "text_features", "logit_scale"))
    unit = lambda t: F.normalize(t, dim=1)  # noqa: E731
    z = scale * unit(x) @ unit(y).T
    teacher = wide["teacher_logit_scale"] * (
        unit(wide["teacher_image_features"]) @ unit(wide["teacher_text_features"]).T
    )
    cross_entropy = lambda t, s: -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()  # noqa: E731
    loss = (cross_entropy(teacher, z) + cross_entropy(teacher.T, z.T)) / 2
    return loss.detach(), list(torch.autograd.grad(loss, (x, y, scale)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (50, 50), (30, 97)])
def test_value_and_gradients(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("no float64 on triton")
    inputs = batch(*shape, dtype)
    loss = fastclip.distill_loss(**inputs, normalize=True, backend=backend)
    loss.backward()
    expected, gradients = oracle(inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    for name, gradient in zip(("image_features", "text_features", "logit_scale"), gradients, strict=True):
        got = inputs[name].grad.double()
        # Of one pair p and q are both 1: triton's weights are float32, and leave 2^-23 of difference.
        floor = 1e-6 if backend == "triton" and shape == (1, 1) else 1e-12
        assert (got - gradient).norm() <= DTYPES[dtype] * gradient.norm() + floor, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_comes_out(backend: str, bad: float) -> None:
    inputs = batch(9, 9, torch.float32)
    with torch.no_grad():
        inputs["text_features"][3, 4] = bad
    assert not fastclip.distill_loss(**inputs, backend=backend).isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_teacher_has_its_own_dtype(backend: str) -> None:
    """A teacher in float32 is not rounded to its student's 16 bits, nor does it overflow there."""
    inputs = batch(40, 40, torch.float16)
    for side in ("image_features", "text_features"):
        inputs[f"teacher_{side}"] = 1e5 * inputs[f"teacher_{side}"].float() + 0.01
    loss = fastclip.distill_loss(**inputs, normalize=True, backend=backend)
    loss.backward()
    expected, gradients = oracle(inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (inputs["text_features"].grad.double() - gradients[1]).norm() <= 1e-3 * gradients[1].norm()
    inputs["teacher_image_features"], inputs["teacher_text_features"] = (
        inputs[f"teacher_{side}"].double() for side in ("image_features", "text_features")
    )
    again = fastclip.distill_loss(**inputs, normalize=True, backend=backend)
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_never_negative(backend: str) -> None:
    x = F.normalize(torch.randn(64, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    assert fastclip.distill_loss(x, x, 100.0, x, x, 100.0, backend=backend).item() >= 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_value_alone(backend: str) -> None:
    inputs = batch(50, 50, torch.float32)
    with torch.no_grad():
        value = fastclip.distill_loss(**inputs, normalize=True, backend=backend)
    assert value.item() == pytest.approx(oracle(inputs)[0].item(), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_student_that_is_its_teacher_has_no_gradient(backend: str) -> None:
    inputs = batch(40, 40, torch.float32)
    for side in ("image_features", "text_features"):
        inputs[f"teacher_{side}"] = inputs[side].detach()
    inputs["teacher_logit_scale"] = 9.0
    fastclip.distill_loss(**inputs, normalize=True, backend=backend).backward()
    assert inputs["image_features"].grad.abs().max() < 1e-7
    assert inputs["logit_scale"].grad.abs() < 1e-7


def test_sum_and_upstream_gradients_scale() -> None:
    inputs = batch(33, 33, torch.float64)
    mean = fastclip.distill_loss(**inputs)
    assert fastclip.distill_loss(**inputs, reduction="sum").item() == pytest.approx(33 * mean.item())
    (once,) = torch.autograd.grad(mean, inputs["image_features"], retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * mean, inputs["image_features"])
    torch.testing.assert_close(thrice, 3 * once)


def test_the_teacher_gets_no_gradient() -> None:
    inputs = batch(8, 8, torch.float32)
    inputs["teacher_image_features"].requires_grad_()
    fastclip.distill_loss(**inputs).backward()
    assert inputs["teacher_image_features"].grad is None


def test_opcheck_and_compile() -> None:
    inputs = batch(9, 9, torch.float32)
    teacher = (inputs["teacher_image_features"], inputs["teacher_text_features"], torch.tensor(14.0))
    student = (inputs["image_features"], inputs["text_features"], inputs["logit_scale"])
    for backend in BACKENDS:
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if backend != "triton":  # the interpreter cannot be traced
            checks.append("test_aot_dispatch_dynamic")
        opcheck(torch.ops.fastclip.distill, (*student, *teacher, True, True, backend), test_utils=checks)
    x, y, scale = (t.detach() for t in student)
    x = x.T.contiguous().T  # results are contiguous whatever the features are
    gradients = (torch.ones(()), torch.ones(9, 12), torch.ones(9, 12), torch.ones(()))
    opcheck(torch.ops.fastclip.distill_backward, (*gradients, x, y, scale))
    compiled = torch.compile(fastclip.distill_loss, fullgraph=True, backend="aot_eager")
    assert compiled(**inputs).item() == pytest.approx(fastclip.distill_loss(**inputs).item())


def test_a_second_derivative_is_refused() -> None:
    inputs = batch(6, 6, torch.float32)
    (gradient,) = torch.autograd.grad(
        fastclip.distill_loss(**inputs), inputs["image_features"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


def test_bad_input_is_named() -> None:
    inputs = batch(6, 6, torch.float32)
    with pytest.raises(ValueError, match="the teacher has 5 images and 6 texts but the student 6 and 6"):
        fastclip.distill_loss(**inputs | {"teacher_image_features": inputs["teacher_image_features"][:5]})
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum' for distillation, got 'none'"):
        fastclip.distill_loss(**inputs, reduction="none")
    with pytest.raises(ValueError, match="teacher_text_features has 4 features"):
        fastclip.distill_loss(**inputs | {"teacher_text_features": inputs["teacher_text_features"][:, :4]})
