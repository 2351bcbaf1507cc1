"""The ops as torch sees them: schema, fake, autograd, compile, autocast, checkpointing, accumulation."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastclip
from fastclip.backends import get_backend
from fastclip.functional import info_nce_loss
from fastclip.objectives import Objective
from tests.places import BACKENDS, COMPILED_BACKENDS, CPU_BACKENDS
from tests.regimes import unit

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 1, 0, 2, 3, 1])

#: Ways to call a loss on (6, 5) and (6, 5) features.
CALLS: dict[str, Callable[..., Tensor]] = {
    "clip": lambda x, y, s, b, **more: fastclip.clip_loss(x, y, s, logit_bias=b, **more),
    "clip, labels": lambda x, y, s, b, **more: fastclip.clip_loss(x, y, s, labels=LABELS, **more),
    "clip, smoothing": lambda x, y, s, b, **more: fastclip.clip_loss(x, y, s, label_smoothing=0.2, **more),
    "clip, smoothing, labels": lambda x, y, s, b, **more: fastclip.clip_loss(
        x, y, s, label_smoothing=0.2, labels=LABELS, normalize=True, **more
    ),
    "clip, many positives": lambda x, y, s, b, **more: fastclip.clip_loss(
        x, y, s, labels=LABELS, multi_positive=True, normalize=True, **more
    ),
    "clip, every row": lambda x, y, s, b, **more: fastclip.clip_loss(
        x[:4], y, s, diagonal=1, reduction="none", **more
    ),
    "info_nce": lambda x, y, s, b, **more: info_nce_loss(x, y, s, normalize=True, **more),
    "info_nce, temperature": lambda x, y, s, b, **more: info_nce_loss(
        x[:3], y, temperature=s / 9, diagonal=2, **more
    ),
    "siglip": lambda x, y, s, b, **more: fastclip.siglip_loss(x, y, s, logit_bias=b, **more),
    "siglip, labels": lambda x, y, s, b, **more: fastclip.siglip_loss(
        x[:5], y, s, logit_bias=b, labels=(LABELS[:5], LABELS), normalize=True, **more
    ),
    "siglip, many positives": lambda x, y, s, b, **more: fastclip.siglip_loss(
        x, y, s, logit_bias=b, labels=LABELS, multi_positive=True, **more
    ),
}


def inputs(dtype: torch.dtype = torch.float32, rows: int = 6) -> tuple[Tensor, ...]:
    """Return x, y (rows, 5), scale and bias, all requiring gradients."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (2 * unit(rows, 5, seed).to(dtype) for seed in (1, 2))
    scalars = (torch.tensor(v, dtype=wide) for v in (3.0, -0.5))
    return tuple(t.requires_grad_() for t in (x, y, *scalars))


def gradients(loss: Tensor, leaves: tuple[Tensor, ...], **options: bool) -> list[Tensor]:
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, **options)
    return [
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)
    ]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_gradcheck(backend: str, call: str) -> None:
    def loss(*args: Tensor) -> Tensor:
        return CALLS[call](*args, backend=backend)

    assert torch.autograd.gradcheck(loss, inputs(torch.float64))


def op_arguments(
    backend: str, objective: Objective, dtype: torch.dtype, labelled: bool, columns: bool
) -> tuple:
    x, y, scale, bias = inputs(dtype)
    labels = (LABELS, LABELS) if labelled else (None, None)
    diagonal = None if objective is Objective.MULTI_SIGMOID else 0
    return (x, y, scale, bias, *labels, objective.value, columns, True, diagonal)


@pytest.mark.parametrize(
    ("objective", "labelled", "columns"),
    [
        (Objective.SOFTMAX, False, True),
        (Objective.SOFTMAX, True, False),
        (Objective.SIGMOID, True, False),
        (Objective.MULTI_SIGMOID, True, False),
    ],
)
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_opcheck(backend: str, objective: Objective, labelled: bool, columns: bool) -> None:
    arguments = op_arguments(backend, objective, torch.float32, labelled, columns)
    workspace = 4 * 36  # bytes: keeps all products (the rest of a larger one would be uninitialised memory)
    torch.library.opcheck(torch.ops.fastclip.contrastive.default, (*arguments, workspace, backend))
    detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    row, col, *statistics = torch.ops.fastclip.contrastive(*detached, workspace, backend)
    backward = (torch.ones_like(row), torch.ones_like(col), *statistics, *detached, True, False, backend)
    torch.library.opcheck(torch.ops.fastclip.contrastive_backward.default, backward)


def test_opcheck_of_sums_over_labels() -> None:
    keys = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    arguments = (keys, LABELS, torch.tensor([0, 1, 7, 1]))
    torch.library.opcheck(torch.ops.fastclip.group_sums.default, arguments)
    torch.autograd.gradcheck(
        torch.ops.fastclip.group_sums, (keys.double().detach().requires_grad_(), *arguments[1:])
    )


@pytest.mark.parametrize("objective", [Objective.SOFTMAX, Objective.SIGMOID])
def test_opcheck_of_the_triton_backend(objective: Objective) -> None:
    if "triton" not in CPU_BACKENDS:
        pytest.skip("Triton is not installed")
    arguments = op_arguments("triton", objective, torch.float32, True, objective is Objective.SOFTMAX)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fastclip.contrastive.default, (*arguments, 0, "triton"), test_utils=checks
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_the_fake_op_promises_what_the_op_returns(backend: str, dtype: torch.dtype) -> None:
    """Shapes, dtypes and devices, for every combination of options that changes them."""
    for objective, columns, diagonal in (
        ("softmax", True, 0),
        ("softmax", False, None),
        ("sigmoid", False, 1),
    ):
        x, y, scale, bias = (t.detach() for t in inputs(dtype))
        problem = (x[:4], y, scale, bias, None, None, objective, columns, False, diagonal)
        real = torch.ops.fastclip.contrastive(*problem, 40, backend)
        fake = torch.ops.fastclip.contrastive(*(_to_meta(a) for a in problem), 40, backend)
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


def _to_meta(argument: object) -> object:
    return argument.to("meta") if isinstance(argument, Tensor) else argument


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", CALLS)
def test_compiles_as_one_graph(call: str, dynamic: bool) -> None:
    """`fullgraph=True`: nothing in a loss makes the tracer fall back to Python, and the numbers are the same."""
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[call], fullgraph=True, backend="aot_eager", dynamic=dynamic)
    leaves = inputs()
    eager_loss, traced_loss = CALLS[call](*leaves), compiled(*leaves)
    assert torch.equal(eager_loss, traced_loss)
    for ours, theirs in zip(gradients(traced_loss, leaves), gradients(eager_loss, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_how_a_backend_is_found_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a GPU for its capability, or a package for its version, is nothing that a graph can hold."""
    torch._dynamo.reset()
    asked = []

    def obstacle(backend: object, device: torch.device, dtype: torch.dtype) -> str | None:
        asked.append(os.stat(__file__).st_size)
        return None

    monkeypatch.setattr(fastclip.backends, "_obstacle", obstacle)
    compiled = torch.compile(fastclip.clip_loss, fullgraph=True, backend="eager")
    assert compiled(*inputs()[:3]).isfinite() and asked


def test_a_dynamic_graph_serves_other_sizes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(fastclip.clip_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9, 11):
        x, y, scale, _ = inputs(rows=rows)
        with torch.compiler.set_stance("default" if rows == 6 else "fail_on_recompile"):
            loss = compiled(x, y, scale)
        assert torch.equal(loss, fastclip.clip_loss(x, y, scale))


@pytest.mark.slow
@pytest.mark.parametrize("call", ["clip", "siglip, labels"])
def test_compiles_with_inductor(call: str) -> None:
    """A whole training step through the default compiler, C++ and all."""
    torch._dynamo.reset()
    leaves = inputs()

    def step(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return CALLS[call](F.normalize(x.tanh(), dim=1), y * 2, scale.exp(), bias)

    compiled = torch.compile(step, fullgraph=True)
    ours, theirs = compiled(*leaves), step(*leaves)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_the_loss_alone(backend: str, call: str) -> None:
    """Inside autocast the loss is as exact as outside: its products are the kernels' own business."""
    leaves = inputs()
    outside = CALLS[call](*leaves, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = CALLS[call](*leaves, backend=backend)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert_same(gradients(inside, leaves), gradients(outside, leaves))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_towers(backend: str) -> None:
    """What a training step does: towers in bfloat16, one of them left in float32; the wider dtype is taken."""
    torch.manual_seed(0)
    image, text = nn.Linear(8, 5), nn.Linear(8, 5)
    pixels, tokens = torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, y = image(pixels), F.normalize(text(tokens).float(), dim=1)
        assert (x.dtype, y.dtype) == (torch.bfloat16, torch.float32)
        loss = fastclip.clip_loss(x, y, 10.0, backend=backend)
    assert torch.equal(loss, fastclip.clip_loss(x.float(), y, 10.0, backend=backend))
    loss.backward()
    assert image.weight.grad is not None
    assert image.weight.grad.isfinite().all()
    with pytest.raises(TypeError, match=r"under torch\.autocast the wider one is taken"):
        fastclip.clip_loss(x, y, 10.0, backend=backend)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("call", ["clip", "siglip", "clip, smoothing, labels"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing(backend: str, call: str, reentrant: bool) -> None:
    leaves = inputs()

    def loss(*args: Tensor) -> Tensor:
        return CALLS[call](*args, backend=backend)

    plain = loss(*leaves)
    recomputed = checkpoint(loss, *leaves, use_reentrant=reentrant)
    assert torch.equal(plain, recomputed)
    expected = gradients(plain, leaves)
    recomputed.backward()
    assert_same([torch.zeros_like(t) if t.grad is None else t.grad for t in leaves], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_accumulation_with_two_losses_in_flight(backend: str) -> None:
    """Kept products belong to their own call's graph: backward passes may come in any order."""
    x, y, scale, _ = inputs(rows=8)
    halves = [(x[:4], y[:4]), (x[4:], y[4:])]
    alone = [gradients(fastclip.clip_loss(*half, scale, backend=backend), (x, y, scale)) for half in halves]
    losses = [fastclip.clip_loss(*half, scale, backend=backend) for half in halves]
    for loss in reversed(losses):
        loss.backward()
    for leaf, first, second in zip((x, y, scale), *alone, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, first + second)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_retain_graph(backend: str, call: str) -> None:
    leaves = inputs()
    loss = CALLS[call](*leaves, backend=backend)
    first = gradients(loss, leaves, retain_graph=True)
    assert_same(gradients(loss, leaves), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(loss, leaves)


@pytest.mark.parametrize("call", ["clip", "clip, labels", "info_nce", "siglip", "siglip, many positives"])
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_double_backward_raises(backend: str, call: str) -> None:
    x, y, scale, bias = inputs(torch.float64)
    (dx,) = torch.autograd.grad(CALLS[call](x, y, scale, bias, backend=backend).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once.*compute the loss in plain torch"):
        dx.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_as_they_were(backend: str) -> None:
    leaves = inputs()
    before = [leaf.detach().clone() for leaf in leaves]
    fastclip.clip_loss(*leaves[:3], labels=LABELS, normalize=True, backend=backend).backward()
    assert_same([leaf.detach() for leaf in leaves], before)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_a_weight_on_one_direction_only(backend: str) -> None:
    """The rows' and the columns' values are two outputs: a loss may leave one of them without a gradient."""
    x, y, scale, _ = inputs(torch.float64)
    common = {"objective": Objective.SOFTMAX, "columns": True, "normalize": False, "diagonal": 0}
    for side in (0, 1):
        values = fastclip.ops.contrastive(x, y, scale, None, None, **common, workspace=0, backend=backend)
        z = scale * x @ y.T
        plain = F.cross_entropy(z if side == 0 else z.T, torch.arange(6), reduction="none")
        torch.testing.assert_close(values[side], plain)
        ours, theirs = gradients(values[side], (x, y, scale)), gradients(plain, (x, y, scale))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_are_stateless(backend: str) -> None:
    """One instance serves every call of the process."""
    before = dict(vars(get_backend(backend)))
    fastclip.clip_loss(*inputs()[:3], backend=backend).backward()
    assert dict(vars(get_backend(backend))) == before
