"""Measure the losses: time, peak memory, and how near they come to torch's own matmul.

    python -m benchmarks loss --suite quick
    python -m benchmarks loss --objective softmax --dtype float32 -d 512 -n 8192 --only fastclip torch

Every contender is first tried in a process of its own, which also measures its memory; those that answer are
then timed in turns. Results go to benchmarks/results/ as JSON and as charts. The columns:

    time       of forward and backward pass, the median over turns; ± their interquartile range
    of matmul  what 8 N² D FLOPs take at the rate of torch's own matmul, over this time; can exceed 100 % where
               similarities are kept for the backward pass: whoever keeps them all does 6 N² D FLOPs
    speedup    plain torch's time over this, the median over turns of the ratio within a turn
    memory     peak beyond the inputs, gradients included; and as a share of plain torch's
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import measure, report
from benchmarks.cases import OBJECTIVES, PATIENCE, SUITES, Case, Inputs, Series
from benchmarks.contenders import Contender, Loss, Unavailable, contenders, fitting, step
from benchmarks.probe import Outcome, probe
from benchmarks.report import Row, say

#: The contender that `speedup` refers to.
BASELINE = "torch"

FLOOR = "matmul"

#: Bytes of inputs that a GPU's cache cannot hold: timing rotates among copies of this size together.
ROTATED = 256 * 2**20

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def measure_series(
    series: Series,
    device: str,
    who: Iterable[Contender],
    *,
    seconds: float,
    patience: float,
    errors: Callable[[Contender, Case], dict[str, float] | None] | None = None,
    show: Callable[[str], object] = print,
) -> list[Row]:
    """Measure every contender at every size of a series.

    Args:
        seconds: to spend on the timing of a case.
        patience: seconds that a step may take before larger sizes are left out.
        errors: relative errors of a contender's outputs at a case, or None.
        show: takes the table of each case as it is done.
    """
    cases, who = series.cases(device), fitting(who, series.objective, device)
    if device == "cuda":
        torch.cuda.empty_cache()  # leave the memory to the processes that try the contenders
    tried: dict[str, list[Outcome]] = {}
    for contender in who:
        say(f"trying {contender.name}: {cases[0].objective}, D = {series.d}, {cases[0].dtype_name}")
        tried[contender.name] = probe(contender, cases, patience=patience)
    rows = []
    for index, case in enumerate(cases):
        say(f"timing {case.label}")
        outcomes = {c.name: tried[c.name][index] for c in who}
        running = [c for c in who if outcomes[c.name].failure is None]
        timings = time_case(case, running, seconds=seconds)
        done = [_row(case, c, outcomes, timings) for c in who]
        if errors is not None:
            measured = zip(done, who, strict=True)
            done = [row if row.failure else replace(row, errors=errors(c, case)) for row, c in measured]
        floor = timings[FLOOR]
        rate = case.flops / floor.median / 1e9
        show(f"\n{case.label}: matmul alone {report.duration(floor.median)}, {rate:,.0f} GFLOP/s")
        show(report.table(done) + "\n")
        rows += [Row(case, FLOOR, floor.median, floor.spread, len(floor.seconds), 1.0), *done]
    return rows


def time_case(case: Case, who: Iterable[Contender], *, seconds: float) -> dict[str, measure.Timing]:
    """Time contenders, and the matmul of 8 N² D FLOPs as `FLOOR`, in turns; return timings by name."""
    size = 2 * case.n * case.d * case.dtype.itemsize
    copies = 1 if case.device == "cpu" else min(16, 1 + -(-ROTATED // size))
    inputs = [case.inputs(seed) for seed in range(copies)]
    matmul = measure.matmul(case.n, case.d, case.dtype, case.device)
    steps: dict[str, measure.Step] = {FLOOR: matmul.step}
    refused = {}
    for contender in who:
        try:
            steps[contender.name] = _rotating(contender.loss(case), inputs)
        except Unavailable as reason:
            refused[contender.name] = measure.Timing(failure=str(reason))
    timings = measure.in_turns(steps, case.device, seconds=seconds) | refused
    scale = case.flops / matmul.flops
    timings[FLOOR] = measure.Timing([t * scale for t in timings[FLOOR].seconds])
    return timings


def _rotating(loss: Loss, inputs: list[Inputs]) -> measure.Step:
    return lambda i: step(loss, inputs[i % len(inputs)])


def _row(case: Case, who: Contender, outcomes: dict[str, Outcome], timings: dict[str, measure.Timing]) -> Row:
    timing = timings.get(who.name, measure.Timing(failure=outcomes[who.name].failure))
    if timing.failure is not None:
        return Row(case, who.name, failure=timing.failure)
    memory = outcomes[who.name].memory
    plain, plain_memory = timings.get(BASELINE, measure.Timing()), outcomes.get(BASELINE, Outcome()).memory
    return Row(
        case,
        who.name,
        seconds=timing.median,
        spread=timing.spread,
        turns=len(timing.seconds),
        floor_share=timings[FLOOR].over(timing),
        speedup=plain.over(timing) if plain.seconds else None,
        memory=memory,
        memory_share=memory / plain_memory if memory is not None and plain_memory else None,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that commands of this kind share."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--threads", type=int, help="of torch and of the C++ kernels; default: torch's own choice")
    add("--only", nargs="+", metavar="NAME", help="contenders whose name contains one of these")
    add("--seconds", type=float, default=10.0, help="to spend on timing a case; default %(default)s")
    add(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="leave out steps that take longer; default 20 (large: 200)",
    )
    add("--output", type=Path, default=report.RESULTS, help="folder for results")


def chosen_device(options: argparse.Namespace) -> str:
    """Return the device asked for, and put the threads asked for to work."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this torch sees no GPU; leave the option out to measure the CPU")
    return device


def main(arguments: list[str]) -> int:
    """Measure a suite, or the one series that the options describe."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks loss",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--suite", choices=SUITES, default="default", help="what to measure: benchmarks/cases.py")
    add("--quick", action="store_const", const="quick", dest="suite", help="--suite quick")
    add("-n", "--sizes", type=int, nargs="+", metavar="N", help="numbers of pairs, instead of a suite")
    add("-d", "--width", type=int, default=512, metavar="D", help="with -n: features; default %(default)s")
    add("--objective", choices=OBJECTIVES, help="only this; with -n default softmax")
    add("--dtype", choices=DTYPES, help="only this; with -n default float32")
    add_options(parser)
    options = parser.parse_args(arguments)
    device = chosen_device(options)
    try:
        who = contenders(options.only)
    except ValueError as error:
        parser.error(str(error))
    dtype = DTYPES.get(options.dtype)
    if options.sizes:
        objective = options.objective or "softmax"
        suite = [Series(objective, options.width, dtype or torch.float32, tuple(options.sizes))]
    else:
        suite = [
            series
            for series in SUITES[options.suite]
            if options.objective in (None, series.objective) and dtype in (None, series.dtype)
        ]
    patience = options.patience
    if patience is None:
        patience = PATIENCE.get("custom" if options.sizes else options.suite, 20.0)
    made_by = report.environment()
    rows: list[Row] = []
    for series in suite:
        rows += measure_series(series, device, who, seconds=options.seconds, patience=patience)
    name = f"loss-{device}" + ("-custom" if options.sizes else _suffix(options.suite))
    finish("loss", arguments, rows, name, options.output, made_by)
    return 0


def finish(
    command: str, arguments: list[str], rows: list[Row], name: str, folder: Path, made_by: dict
) -> None:
    """Write the results and draw them, and say where they are."""
    document = report.document(report.command(command, arguments), rows, made_by)
    write(document, name, folder)


def write(document: dict, name: str, folder: Path) -> None:
    """Write a result document, draw its rows, and say where they are."""
    path = report.save(document, name, folder)
    try:
        from benchmarks import chart

        charts = chart.draw(document, path)
    except ModuleNotFoundError as missing:
        say(f"no charts: {missing.name} is not installed (pip install matplotlib)")
        charts = []
    for written in (path, *charts):
        say(f"written: {written}")


def _suffix(suite: str) -> str:
    return "" if suite == "default" else f"-{suite}"
