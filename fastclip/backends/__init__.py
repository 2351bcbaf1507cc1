"""Backends: interchangeable ways of computing blocks of the similarity matrix."""

from __future__ import annotations

import torch

from fastclip.backends.base import Backend, Block, Packed, Problem, compute_dtype, kernels_on
from fastclip.backends.cpu import CpuBackend
from fastclip.backends.reference import ReferenceBackend
from fastclip.backends.triton import TritonBackend

__all__ = [
    "Backend",
    "Block",
    "Packed",
    "Problem",
    "available_backends",
    "compute_dtype",
    "get_backend",
    "kernels_on",
    "resolve_backend",
    "unavailable_reason",
]

#: Fastest first.
BACKENDS: dict[str, Backend] = {b.name: b for b in (TritonBackend(), CpuBackend(), ReferenceBackend())}

#: What "auto" tries, by device type. (Triton's interpreter runs on CPU tensors too, but only for those who ask.)
AUTO: dict[str, tuple[str, ...]] = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run here, fastest first."""
    return tuple(name for name, backend in BACKENDS.items() if backend.unavailable_reason() is None)


def unavailable_reason(name: str) -> str | None:
    """Say why backend `name` cannot run in this installation, or None if it can."""
    return get_backend(name).unavailable_reason()


def get_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return BACKENDS[name]


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the backend that `name` means for features of this device and dtype.

    "auto" takes the first of `AUTO` that can run them; a backend asked for by name is never replaced.

    Raises:
        ValueError: there is none of that name.
        RuntimeError: the backend asked for is not available here, or does not take such features.
    """
    if name == "auto":
        candidates = AUTO.get(device.type, ("reference",))
        return next(name for name in candidates if _obstacle(get_backend(name), device, dtype) is None)
    reason = _obstacle(get_backend(name), device, dtype)
    if reason is not None:
        raise RuntimeError(
            f"backend={name!r} cannot run this: {reason}. Use backend='auto', or one of {available_backends()}"
        )
    return name


# torch.compile shall ask once and for all, not trace how it is found out; this is what the decorator
# torch.compiler.assume_constant_result does, whose import takes a second.
resolve_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _obstacle(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    return backend.unavailable_reason() or backend.unsupported_reason(device, dtype)
