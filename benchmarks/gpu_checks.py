"""Check how losses behave on a GPU, before anything is timed; what plain ones compute is for benchmarks/oracle.py.

repeatable   the same bits twice
labelled     labels that some pairs share, against the reference backend in float64, and the same bits twice
unsynced     a step waits for nothing on the host
replayed     a CUDA graph captured once gives what an ordinary step gives, bit for bit, on other inputs
bounded      peak memory beside features and gradients
distilled    distillation, likewise against float64
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import fastclip
from benchmarks import measure
from benchmarks.cases import Case, Inputs
from benchmarks.contenders import Loss, contender, step
from benchmarks.oracle import Finding

#: Bytes beside features, gradients, packed copies and one float32 dy.
WORKSPACE = 768 * 2**20


def repeatable(case: Case, who: str = "fastclip triton") -> list[Finding]:
    """Ask for the same bits twice: of loss and of every gradient."""
    answers = (_differentiated(contender(who).loss(case), case.inputs()) for _ in range(2))
    return [
        Finding(f"{name}, same bits twice", 0.0 if torch.equal(*both) else float("inf"))
        for name, both in zip(("loss", "dx", "dy", "dscale"), zip(*answers, strict=True), strict=False)
    ]


def labelled(case: Case, who: str = "fastclip triton") -> list[Finding]:
    """Hold losses with shared labels against float64's, and ask for the same bits twice."""
    labels = torch.arange(case.n, device=case.device) * 7 // 8

    def loss_of(backend: str, options: dict[str, Any]) -> Loss:
        return lambda x, y, scale, _bias: fastclip.clip_loss(
            *(x, y, scale), labels=labels, normalize=True, backend=backend, **options
        )

    found = []
    kinds: dict[str, dict[str, Any]] = {
        "labels": {},
        "labels, smoothing": {"label_smoothing": 0.1},
        "labels, many positives": {"multi_positive": True},
    }
    for name, options in kinds.items():
        ours, exact = loss_of(who.removeprefix("fastclip "), options), loss_of("reference", options)
        first, second = (_differentiated(ours, case.inputs()) for _ in range(2))
        found += _against(_differentiated(exact, case.inputs().double()), first, case.dtype, name)
        same = all(torch.equal(*both) for both in zip(first, second, strict=True))
        found.append(Finding(f"{name}, same bits twice", 0.0 if same else float("inf")))
    return found


def _against(exact: list[Tensor], ours: list[Tensor], dtype: torch.dtype, name: str) -> list[Finding]:
    """Hold loss, dx, dy and dscale against float64's, each as a whole."""
    rounding = 2.0**-18 + torch.finfo(dtype).eps
    bounds = {"loss": 1e-5, "dx": rounding, "dy": rounding, "dscale": 1e-5}
    return [
        Finding(f"{name}, {which}", ((mine.double() - right).norm() / right.norm()).item() / bounds[which])
        for which, mine, right in zip(bounds, ours, exact, strict=True)
    ]


def unsynced(case: Case, who: str = "fastclip triton") -> list[Finding]:
    """Forbid CUDA to wait on the host during a step."""
    loss, inputs = contender(who).loss(case), case.inputs()
    step(loss, inputs)  # what compiles may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, inputs)
    except RuntimeError as error:
        return [Finding(f"no host sync ({measure.describe(error)})", float("inf"))]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [Finding("no host sync", 0.0)]


def captured(loss: Loss, inputs: Inputs) -> Callable[[], Tensor]:
    """Capture a step on inputs as a CUDA graph; return what replays it and returns the loss.

    Gradients are left in the inputs' ``grad``, which the graph owns.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compile and warm up where nothing is recorded
        for _ in range(2):
            step(loss, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    inputs.clear_gradients()
    with torch.cuda.graph(graph):
        value = loss(*inputs)
        value.backward()

    def replay() -> Tensor:
        graph.replay()
        return value

    return replay


def replayed(case: Case, who: str = "fastclip triton") -> list[Finding]:
    """Capture a step on one set of inputs, replay it on another."""
    loss, inputs = contender(who).loss(case), case.inputs(seed=0)
    replay = captured(loss, inputs)
    other = case.inputs(seed=1)
    with torch.no_grad():
        for mine, new in zip(inputs, other, strict=True):
            if mine is not None and new is not None:
                mine.copy_(new)
    value = replay().clone()
    step(loss, other)
    found = {"loss": (value, loss(*other).detach())} | {
        name: (getattr(inputs, name).grad, getattr(other, name).grad)
        for name in ("image_features", "text_features", "logit_scale")
    }
    return [
        Finding(f"CUDA graph, {name}", 0.0 if torch.equal(*both) else float("inf"))
        for name, both in found.items()
    ]


def bounded(case: Case, who: str = "fastclip triton") -> tuple[Finding, int]:
    """Hold a step's peak memory against its bound; return that and the peak in bytes, gradients included."""
    loss, inputs = contender(who).loss(case), case.inputs()
    step(loss, inputs)
    inputs.clear_gradients()
    peak = measure.extra_memory(lambda: step(loss, inputs), case.device) or 0
    return Finding("peak memory", peak / memory_bound(case)), peak


def distilled(case: Case, who: str = "fastclip triton") -> list[Finding]:
    """Distil from a teacher twice as wide, and hold the result against float64's."""
    teacher = [t.detach() for t in list(replace(case, d=2 * case.d).inputs(seed=1))[:3] if t is not None]

    def loss_of(backend: str, taught: list[Tensor]) -> Loss:
        return lambda x, y, scale, _bias: fastclip.distill_loss(
            *(x, y, scale, *taught), normalize=True, backend=backend
        )

    ours, exact = (
        loss_of(who.removeprefix("fastclip "), teacher),
        loss_of("reference", [t.double() for t in teacher]),
    )
    answers = _differentiated(exact, case.inputs().double()), _differentiated(ours, case.inputs())
    return _against(*answers, case.dtype, "distillation")


def memory_bound(case: Case) -> int:
    """Return bytes: gradients, packed copies (2 an element, 4 for float32), one float32 dy, and the workspace."""
    entries = case.n * -(-case.d // 64) * 64
    gradients = 2 * case.n * case.d * case.dtype.itemsize
    packed = 2 * entries * (4 if case.dtype == torch.float32 else 2)
    return gradients + packed + 4 * entries + WORKSPACE


def _differentiated(loss: Loss, inputs: Inputs) -> list[Tensor]:
    """Return the loss and its gradients: dx, dy, dscale and, where there is a bias, dbias."""
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, [t for t in inputs if t is not None])]
