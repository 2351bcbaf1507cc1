"""Let open_clip be imported beside a CPU build of torch, in the environment that `make openclip` prepares."""

from __future__ import annotations

import sys

import torch

_libraries: list[torch.library.Library] = []  # what is defined in one lives as long as it does


def prepare() -> None:
    """Do, once, what has to be done before the first `import open_clip`.

    torchvision's compiled part does not load on a CPU build of torch, but its Python describes two of its operators.
    transformers is kept out: open_clip does without, and is imported sooner.
    """
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(operators)
    sys.modules["transformers"] = None  # type: ignore[assignment]
