"""Who is measured: fastclip's backends, plain torch, and the published losses that do the same work.

A contender is a name and a function that prepares its loss for a case, or says why it cannot run it. Nothing
outside torch and fastclip is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip
from benchmarks import baselines
from benchmarks.cases import OBJECTIVES, Case, Inputs
from fastclip.backends import BACKENDS

#: Takes image features, text features, multiplier and bias; returns the 0-d loss.
Loss = Callable[..., Tensor]


class Unavailable(Exception):
    """A contender cannot run a case here; the message says why."""


@dataclass(frozen=True)
class Contender:
    """Somebody who computes a loss.

    Attributes:
        prepare: returns the loss for a case, or raises `Unavailable`.
        objectives: the losses it has.
        devices: where it exists at all.
        matrices: how many N x N matrices of the features' dtype it holds at its peak, 0 if it holds none.
        compiles: whether it compiles anew for every shape.
    """

    name: str
    prepare: Callable[[Case], Loss]
    objectives: tuple[str, ...] = OBJECTIVES
    devices: tuple[str, ...] = ("cpu", "cuda")
    matrices: float = 0
    compiles: bool = False

    def loss(self, case: Case) -> Loss:
        """Return the loss, ready to be called on the case's inputs.

        Raises:
            Unavailable: it cannot run this case here.
        """
        needed = self.matrices * case.n**2 * case.dtype.itemsize
        if case.device == "cpu" and needed > 0.8 * available_memory():
            raise Unavailable(f"needs about {needed / 2**30:.0f} GiB of memory")
        return self.prepare(case)


def step(loss: Loss, inputs: Inputs) -> None:
    """Run one training step's share of the loss: forward and backward, into fresh gradients."""
    inputs.clear_gradients()
    loss(*inputs).backward()


def contenders(names: list[str] | None = None, *, peers: bool = False) -> list[Contender]:
    """Return the contenders in the order of the tables.

    Args:
        names: take only these. A name that nobody has in full stands for all that contain it.
        peers: whether to go through `PEERS` rather than `CONTENDERS`.

    Raises:
        ValueError: a name that no contender contains.
    """
    everybody = PEERS if peers else CONTENDERS
    if names is None:
        return list(everybody)
    chosen = set()
    for name in names:
        found = {c.name for c in everybody if c.name == name} or {c.name for c in everybody if name in c.name}
        if not found:
            known = ", ".join(c.name for c in everybody)
            raise ValueError(f"no contender is called {name!r}; there are {known}")
        chosen |= found
    return [c for c in everybody if c.name in chosen]


def fitting(who: Iterable[Contender], objective: str, device: str) -> list[Contender]:
    """Return those that have the objective and exist on the device."""
    return [c for c in who if objective in c.objectives and device in c.devices]


def contender(name: str) -> Contender:
    """Return the contender of exactly this name."""
    return next(c for c in (*CONTENDERS, *PEERS) if c.name == name)


def _fastclip(case: Case, backend: str, workspace: float | None) -> Loss:
    instance = BACKENDS[backend]
    device = torch.device(case.device)
    reason = instance.unavailable_reason() or instance.unsupported_reason(device, case.dtype)
    if reason is not None:
        raise Unavailable(reason)
    function = fastclip.clip_loss if case.objective == "softmax" else fastclip.siglip_loss

    def loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return function(x, y, scale, logit_bias=bias, backend=backend, workspace=workspace)

    return loss


def _torch(case: Case) -> Loss:
    return baselines.clip if case.objective == "softmax" else baselines.siglip


def _chunked(case: Case) -> Loss:
    return baselines.clip_by_chunks if case.objective == "softmax" else baselines.siglip_by_chunks


def _compiled(case: Case) -> Loss:
    return torch.compile(_torch(case), dynamic=False)


def _linear_cross_entropy(case: Case) -> Loss:
    if not hasattr(F, "linear_cross_entropy") or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Unavailable(f"torch {torch.__version__} has no chunked F.linear_cross_entropy")
    return baselines.linear_cross_entropy


def _open_clip(case: Case) -> Loss:
    losses = open_clip_losses()
    return losses.ClipLoss() if case.objective == "softmax" else losses.SigLipLoss()


def _open_clip_compiled(case: Case) -> Loss:
    return torch.compile(_open_clip(case), dynamic=False)


def _inf_cl(case: Case) -> Loss:
    _on_cuda(case)
    head = next((h for h in (256, 128, 64, 32, 16) if case.d % h == 0), None)
    if head is None:
        raise Unavailable(f"takes widths that a head of 16 to 256 divides, not {case.d}")
    one_way = partial(_peer("inf_cl", "inf-cl").cal_flash_loss, head_dim=head)

    def loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return (one_way(x, y, scale=scale).mean() + one_way(y, x, scale=scale).mean()) / 2

    return loss


def _memeff(case: Case) -> Loss:
    _on_cuda(case)
    # stable=False: the gradient of the loss itself, not one rescaled by the batch size. The temperature is a
    # constant to it and gets no gradient.
    temperature = 1 / float(case.of_size(1).inputs().logit_scale)
    module = _peer("memeff").MemoryEfficientCLIPLoss(temperature, normalized_inputs=True, stable=False)
    return lambda x, y, scale, bias: module(x, y)


def _cut_cross_entropy(case: Case) -> Loss:
    _on_cuda(case)
    one_way = partial(_peer("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy, filter_eps=None)

    def loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        labels = torch.arange(len(x), device=x.device)
        return (one_way(scale * x, y, labels) + one_way(scale * y, x, labels)) / 2

    return loss


def _siglip_kernel(case: Case) -> Loss:
    _on_cuda(case)
    function = _peer("siglip_kernel", "siglip-kernel").fused_siglip_loss
    return lambda x, y, scale, bias: function(x, y, scale.log(), bias)


def _on_cuda(case: Case) -> None:
    if case.device != "cuda":
        raise Unavailable("needs CUDA")


def _peer(module: str, distribution: str | None = None) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise Unavailable(f"not installed: pip install --no-deps {distribution or module}") from error
        raise Unavailable(f"cannot be imported: {error}") from error
    except Exception as error:  # whatever a package does at import, here it is a row that says so
        raise Unavailable(f"cannot be imported: {type(error).__name__}: {error}") from error


def open_clip_losses() -> ModuleType:
    """Load the module of open_clip's losses: it needs torch alone, the rest of the package torchvision and timm.

    Raises:
        Unavailable: the package is not installed, or is another version.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise Unavailable("not installed: pip install --no-deps open_clip_torch")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    if spec is None or spec.loader is None:
        raise Unavailable(f"has no {path.name} where it was in version 3")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Unavailable(f"its losses cannot be imported: {type(error).__name__}: {error}") from error
    return module


def available_memory() -> float:
    """Return the bytes of memory that the system could still give, or infinity where it does not say."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else float("inf")


#: (backend, workspaces in MiB, devices): Triton's interpreter, which takes CPU tensors too, is no contender.
_BACKENDS = (
    ("triton", (None, 0), ("cuda",)),
    ("cpu", (None, 16), ("cpu",)),
    ("reference", (None,), ("cpu", "cuda")),
)

FASTCLIP = tuple(
    Contender(
        f"fastclip {backend}" + ("" if workspace is None else f", workspace {workspace}"),
        partial(_fastclip, backend=backend, workspace=workspace),
        devices=devices,
    )
    for backend, workspaces, devices in _BACKENDS
    for workspace in workspaces
)

#: What `python -m benchmarks` and `pytest benchmarks/` compare.
CONTENDERS = (
    *FASTCLIP,
    Contender("torch", _torch, matrices=4),
    Contender("torch, compiled", _compiled, matrices=3, compiles=True),
    Contender("torch, chunked loop", _chunked),
    Contender("torch, linear_cross_entropy", _linear_cross_entropy, ("softmax",)),
    Contender("open_clip", _open_clip, matrices=4),
)

#: What `python -m benchmarks peers` compares: the same, and the packages with CUDA kernels.
PEERS = (
    *CONTENDERS,
    Contender("open_clip, compiled", _open_clip_compiled, matrices=4, compiles=True),
    Contender("memeff", _memeff, ("softmax",)),
    Contender("Inf-CL", _inf_cl, ("softmax",)),
    Contender("cut-cross-entropy", _cut_cross_entropy, ("softmax",)),
    Contender("siglip-kernel", _siglip_kernel, ("sigmoid",)),
)
