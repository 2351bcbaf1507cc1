"""Forward and backward of every loss, grouped by objective, size and dtype.

pytest-benchmark runs one contender after the other; for ratios on a machine that is not quiet use
``python -m benchmarks loss``, which lets them take turns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Unavailable, step


def test_loss(benchmark: Any, case: Case, contender: Contender) -> None:
    benchmark.group = case.label
    benchmark.name = contender.name
    try:
        loss = contender.loss(case)
    except Unavailable as reason:
        pytest.skip(str(reason))
    inputs = case.inputs()

    def run() -> None:
        step(loss, inputs)
        if case.device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info["gflops"] = case.flops / benchmark.stats.stats.median / 1e9
    gradients = [inputs.image_features.grad, inputs.text_features.grad]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)
