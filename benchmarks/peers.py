"""Measure fastclip beside the other published losses, on the same inputs and in the same run.

    python -m benchmarks peers
    python -m benchmarks peers -n 32768 -d 512 --dtype bfloat16 --only fastclip memeff

Time, peak memory and error against float64: open_clip's losses (eager and compiled), Inf-CL, memeff,
cut-cross-entropy (both directions, without its gradient filter), siglip-kernel. None is a dependency; choose
from `pip install --no-deps open_clip_torch inf-cl memeff cut-cross-entropy siglip-kernel`. A peer that is
missing or fails is a row that says how. All but open_clip need CUDA.
"""

from __future__ import annotations

import argparse

import torch

import fastclip
from benchmarks import report
from benchmarks.cases import OBJECTIVES, Case, Inputs, Series
from benchmarks.contenders import Contender, contenders
from benchmarks.loss import DTYPES, add_options, chosen_device, finish, measure_series
from benchmarks.report import Row, say

#: By device: sizes, widths, dtypes. Losses that hold the matrix fall out on the way.
SWEEP = {
    "cuda": ((8192, 16384, 32768, 65536, 131072, 262144), (512, 768, 1024), ("bfloat16", "float32")),
    "cpu": ((1024, 2048, 4096), (512,), ("float32",)),
}

#: Pairs up to which errors are measured: float64 takes long beyond.
LARGEST_ORACLE = {"cuda": 65536, "cpu": 4096}


class Oracle:
    """Loss and gradients in float64 on a case's rounded inputs, remembered for the last case asked for."""

    def __init__(self) -> None:
        self._case: Case | None = None
        self._exact: dict[str, torch.Tensor] = {}

    def errors(self, who: Contender, case: Case) -> dict[str, float] | None:
        """Return the relative L2 errors of loss, dx, dy and dscale; None for a case too large.

        What a contender does not give (memeff takes the temperature as a constant) is left out.
        """
        if case.n > LARGEST_ORACLE[case.device]:
            return None
        inputs = case.inputs()
        try:
            if case != self._case:
                self._case, self._exact = case, exact(case)
            loss = who.loss(case)(*inputs)
            loss.backward()
        except torch.OutOfMemoryError:  # it fitted beside its inputs, but not beside the exact gradients too
            return None
        return {
            name: float((value.double() - self._exact[name]).norm() / self._exact[name].norm())
            for name, value in outputs(loss, inputs).items()
            if value is not None
        }


def exact(case: Case) -> dict[str, torch.Tensor]:
    """Return loss and gradients in float64 on the case's rounded inputs, by fastclip's reference backend."""
    wide = case.inputs().double()
    function = fastclip.clip_loss if case.objective == "softmax" else fastclip.siglip_loss
    loss = function(
        wide.image_features,
        wide.text_features,
        wide.logit_scale,
        logit_bias=wide.logit_bias,
        backend="reference",
    )
    loss.backward()
    return {name: value for name, value in outputs(loss, wide).items() if value is not None}


def outputs(loss: torch.Tensor, inputs: Inputs) -> dict[str, torch.Tensor | None]:
    """Return what a step leaves behind, by name."""
    return {
        "loss": loss.detach(),
        "dx": inputs.image_features.grad,
        "dy": inputs.text_features.grad,
        "dscale": inputs.logit_scale.grad,
    }


def main(arguments: list[str]) -> int:
    """Measure all sizes, widths and dtypes, or those asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-n", "--sizes", type=int, nargs="+", metavar="N", help="numbers of pairs")
    add("-d", "--widths", type=int, nargs="+", metavar="D", help="numbers of features")
    add("--objective", choices=OBJECTIVES, help="only this; default both")
    add("--dtype", choices=DTYPES, help="only this")
    add_options(parser)
    options = parser.parse_args(arguments)
    device = chosen_device(options)
    try:
        who = contenders(options.only, peers=True)
    except ValueError as error:
        parser.error(str(error))
    if device == "cpu":
        say("the peers' kernels need CUDA; on CPU, open_clip alone runs beside fastclip and torch")
    sizes, widths, dtypes = SWEEP[device]
    made_by, oracle = report.environment(), Oracle()
    rows: list[Row] = []
    for objective in (options.objective,) if options.objective else OBJECTIVES:
        for dtype in (options.dtype,) if options.dtype else dtypes:
            for d in options.widths or widths:
                series = Series(objective, d, DTYPES[dtype], tuple(options.sizes or sizes))
                rows += measure_series(
                    series,
                    device,
                    who,
                    seconds=options.seconds,
                    patience=20.0 if options.patience is None else options.patience,
                    errors=oracle.errors,
                )
    finish("peers", arguments, rows, f"peers-{device}", options.output, made_by)
    return 0
