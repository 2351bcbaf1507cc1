"""Which backends tests run on, and where."""

from __future__ import annotations

import pytest
import torch

from fastclip.backends import available_backends, get_backend


def places() -> list[tuple[str, str]]:
    """Return where losses can run here: (backend, device type), fastest first."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    candidates = [(name, device) for name in available_backends() for device in devices]
    return [
        (name, device)
        for name, device in candidates
        if get_backend(name).unsupported_reason(torch.device(device), torch.float32) is None
    ]


#: The backends that take CPU tensors: what most tests run on.
CPU_BACKENDS = tuple(name for name, device in places() if device == "cpu")
#: Those that compute at a processor's speed, and in float64 too: not Triton's interpreter.
COMPILED_BACKENDS = tuple(name for name in CPU_BACKENDS if name != "triton")
#: For parametrising. Through the interpreter a loss takes a good part of a second.
BACKENDS = [
    name if name in COMPILED_BACKENDS else pytest.param(name, marks=pytest.mark.slow) for name in CPU_BACKENDS
]
