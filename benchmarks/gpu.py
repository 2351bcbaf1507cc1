"""Check the kernels on this machine's GPU, then time them: ``python -m benchmarks gpu`` (``make gpu``).

First what is right: all regimes of the tests against float64, a table like docs/accuracy.md; then larger problems up
to N = 65,536: sampled rows against float64 (benchmarks/oracle.py), same bits twice, no host sync, CUDA graphs, peak
memory (benchmarks/gpu_checks.py). Only if all of it holds are speeds measured, beside plain torch, the peers that are
installed and the matmul floor: N up to 65,536, a million pairs, small batches as CUDA graphs, whole training steps.
Ten minutes at most, with --quick three: what does not fit is left out, and said to be. Results go to
benchmarks/results/ as JSON, tables and charts. Needs no network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import accuracy, gpu_checks, loss, measure, oracle, report, throughput
from benchmarks.cases import Case, Inputs, Series
from benchmarks.contenders import Loss, contender, contenders, step
from benchmarks.oracle import QUESTIONS, Finding, Question
from benchmarks.report import Row, say

OURS = "fastclip triton"

#: Beside it in the timings: what people use, and the peers with kernels. (All others: `python -m benchmarks peers`.)
BESIDE = ("torch", "open_clip", "memeff", "Inf-CL", "cut-cross-entropy", "siglip-kernel")

_BF16, _F32 = torch.bfloat16, torch.float32

#: What is timed, most wanted first: the rest is left out when time runs short.
SERIES = (
    Series("softmax", 512, _BF16, (8192, 32768, 65536)),
    Series("softmax", 1024, _BF16, (32768, 65536)),
    Series("softmax", 512, _F32, (32768,)),
    Series("sigmoid", 512, _BF16, (32768, 65536)),
)
QUICK_SERIES = (Series("softmax", 512, _BF16, (32768, 65536)),)

#: Pairs of small batches, where launches are what takes time.
SMALL = (512, 1024, 2048, 4096)

#: Seconds to spend on timing one of them.
SMALL_SECONDS = 1.0

MILLION = Case("softmax", 2**20, 512, _BF16, "cuda")

#: Seconds to keep for what comes last, a million pairs and whole training steps.
LAST_SECONDS = 150.0

#: Shares of the command's time that the two kinds of checks may take.
REGIMES_SHARE, CHECKS_SHARE = 0.3, 0.55

#: How many times as fast as a peer, and how many times bfloat16's time float32 may take at full accuracy.
FASTER = {"memeff": 2.5, "Inf-CL": 10.0, "open_clip": 3.0}
FLOAT32_COST = 3.2

#: Largest change of the time per N² between sizes from 32,768 to a million.
DRIFT = 0.1

#: Least share of the matmul floor, by (N, D): bfloat16, softmax, on an H100.
GOALS = {(32768, 512): 0.75, (65536, 512): 0.75, (32768, 1024): 0.78, (65536, 1024): 0.78}

#: Of --quick: one regime of each kind.
QUICK_REGIMES = (
    "M < N, positives inside",
    "scale 1e4",
    "norms 1e-2 to 1e3",
    "fits, margin 12",
    "two clusters",
)


QUICK_QUESTIONS = tuple(QUESTIONS[i] for i in (0, 1, 2, 3, 6, 8))


@dataclass(frozen=True)
class Clock:
    """How much of a command's time is left."""

    end: float

    @classmethod
    def of(cls, minutes: float) -> Clock:
        """Start now."""
        return cls(time.monotonic() + 60 * minutes)

    def left(self) -> float:
        """Return seconds."""
        return self.end - time.monotonic()

    def while_time(self, items: Iterable[Any], seconds: float, label: Callable[[Any], str]) -> Iterator[Any]:
        """Yield items as long as at least so many seconds are left; say what is left out."""
        for item in items:
            if self.left() < seconds:
                say(f"left out for want of time: {label(item)}")
            else:
                yield item


def main(arguments: list[str]) -> int:
    """Run both parts; 1 if a bound was broken (then nothing is timed), 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="three minutes: fewer regimes, one series of timings")
    add("--minutes", type=float, help="time that it may take; default 10, with --quick 3")
    add("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        say(
            "this torch sees no GPU: nothing to check or time here (`make test` runs the kernels interpreted)"
        )
        return 2
    clock = Clock.of(options.minutes or (3 if options.quick else 10))
    made_by = report.environment()
    whole = clock.left()
    regimes = ["--output", str(options.output / "accuracy-cuda.md"), "--device", "cuda"]
    regimes += ["--seconds", f"{REGIMES_SHARE * whole:.0f}", "--dtypes", "bfloat16", "float32"]
    regimes += ["--regimes", *QUICK_REGIMES] if options.quick else ["float16"]
    broken = accuracy.main(regimes)
    checks = check(QUICK_QUESTIONS if options.quick else QUESTIONS, clock, (1 - CHECKS_SHARE) * whole)
    red = [name for name, finding in checks if not finding.passed]
    if broken or red:
        finish(arguments, [], checks, options.output, made_by)
        say(
            "the kernels are wrong here, so nothing is timed: "
            + ("; ".join(red) or "a regime broke its bound")
        )
        return 1
    later = 0.0 if options.quick else LAST_SECONDS
    rows = list(timed(QUICK_SERIES if options.quick else SERIES, clock, later))
    rows += small(clock, later)
    if clock.left() > 60:
        rows += million(rows)
    finish(arguments, rows, checks, options.output, made_by)
    print("\n".join(goals(rows)))
    if not options.quick:
        throughput.on_gpu(options.output, clock.left)
    return 0


def check(
    questions: Iterable[Question], clock: Clock | None = None, keep: float = 0.0
) -> list[tuple[str, Finding]]:
    """Run every check at size, while more than `keep` seconds are left; one that fails to run is a broken bound."""
    clock = Clock.of(60) if clock is None else clock
    case = Case("softmax", 8192, 512, _BF16, "cuda")
    wide = replace(case, dtype=_F32, n=32768)
    jobs: list[tuple[str, Callable[[], list[Finding]]]] = [
        *((question.label, _solving(question)) for question in questions),
        *((each.label, _distilling(each)) for each in (case.of_size(4096), wide.of_size(4096))),
        (case.label, lambda: gpu_checks.repeatable(case)),
        (case.label, lambda: gpu_checks.labelled(case)),
        (case.label, lambda: gpu_checks.unsynced(case)),
        (case.label, lambda: gpu_checks.replayed(case)),
        (wide.label, lambda: [gpu_checks.bounded(wide)[0]]),
        (case.of_size(65536).label, lambda: [gpu_checks.bounded(case.of_size(65536))[0]]),
    ]
    found = []
    for label, job in clock.while_time(jobs, keep, lambda each: each[0]):
        try:
            findings = job()
        except Exception as error:  # whatever a kernel does wrong, here it is a line that says so
            findings = [Finding(measure.describe(error), float("inf"))]
        for finding in findings:
            found.append((f"{label}: {finding.name}", finding))
        worst = max(findings, key=lambda f: f.share if f.share == f.share else float("inf"))
        verdict = "ok" if all(f.passed for f in findings) else "BROKEN"
        print(f"{verdict:<7} {label}: {worst.name} {report.percent(worst.share)} of its bound", flush=True)
    return found


def _solving(question: Question) -> Callable[[], list[Finding]]:
    return lambda: oracle.solved(question)


def _distilling(case: Case) -> Callable[[], list[Finding]]:
    return lambda: gpu_checks.distilled(case)


def timed(series: Iterable[Series], clock: Clock, later: float = 0.0) -> Iterator[Row]:
    """Time series beside the peers, as long as there is time, and so many seconds are kept for later."""
    who = [contender(OURS), *(c for c in contenders(peers=True) if c.name in BESIDE)]
    for each in clock.while_time(series, 75 + later, lambda s: f"{s.objective}, D = {s.d}, {s.dtype}"):
        yield from loss.measure_series(each, "cuda", who, seconds=4.0, patience=5.0)


def small(clock: Clock, later: float = 0.0) -> list[Row]:
    """Time small batches, one step after the other and as a replayed CUDA graph, beside plain torch."""
    rows: list[Row] = []
    cases = [Case("softmax", n, 512, _BF16, "cuda") for n in SMALL]
    for case in clock.while_time(cases, 15 + later, lambda c: c.label):
        steps: dict[str, measure.Step] = {}
        failures: dict[str, str] = {}
        for name in (OURS, "torch"):
            function = contender(name).loss(case)
            steps[name] = _stepping(function, case.inputs())
            try:
                replay = gpu_checks.captured(function, case.inputs())
                steps[f"{name}, CUDA graph"] = lambda i, replay=replay: replay()  # type: ignore[misc]
            except Exception as error:
                failures[f"{name}, CUDA graph"] = measure.describe(error)
        timings = measure.in_turns(steps, "cuda", seconds=SMALL_SECONDS)
        failures |= {name: t.failure for name, t in timings.items() if t.failure is not None}
        plain = timings["torch"]
        done = [
            Row(
                case,
                name,
                t.median,
                t.spread,
                len(t.seconds),
                speedup=plain.over(t) if plain.seconds else None,
            )
            for name, t in timings.items()
            if t.failure is None
        ]
        done += [Row(case, name, failure=failure) for name, failure in failures.items()]
        print(f"\n{case.label}\n{report.table(done)}\n")
        rows += done
    return rows


def _stepping(function: Loss, inputs: Inputs) -> measure.Step:
    return lambda i: step(function, inputs)


def million(rows: list[Row]) -> list[Row]:
    """Time one step over a million pairs, with its memory, against the floor's rate of the series before."""
    say(f"timing {MILLION.label}")
    floors = [row for row in rows if row.contender == loss.FLOOR and row.case.dtype == MILLION.dtype]
    try:
        finding, peak = gpu_checks.bounded(MILLION)
        function, inputs = contender(OURS).loss(MILLION), MILLION.inputs()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(function, inputs)
        end.record()
        end.synchronize()
    except Exception as error:
        return [Row(MILLION, OURS, failure=measure.describe(error))]
    seconds = start.elapsed_time(end) / 1000
    share = None
    if floors and floors[-1].seconds is not None:
        share = floors[-1].seconds / floors[-1].case.flops * MILLION.flops / seconds
    row = Row(MILLION, OURS, seconds, 0.0, 1, share, memory=peak)
    print(
        f"\n{MILLION.label}: peak memory {report.percent(finding.share)} of its bound\n{report.table([row])}\n"
    )
    return [row]


def goals(rows: Iterable[Row]) -> list[str]:
    """Say of everything that has a goal whether it is reached."""
    rows = [row for row in rows if row.seconds is not None]
    ours = {row.case: row for row in rows if row.contender == OURS}
    softmax = {case: row for case, row in ours.items() if case.objective == "softmax"}
    lines = []
    for case, row in softmax.items():
        goal = GOALS.get((case.n, case.d))
        if case.dtype == _BF16 and goal is not None and row.floor_share is not None:
            lines.append(
                report.verdict(
                    f"{case.label}: {report.percent(row.floor_share)} of the matmul rate",
                    f"{goal:.0%} on an H100",
                    row.floor_share >= goal,
                )
            )
        half = softmax.get(replace(case, dtype=_BF16))
        if case.dtype == _F32 and half is not None:
            cost = row.seconds / half.seconds  # type: ignore[operator]
            lines.append(
                report.verdict(
                    f"{case.label}: {cost:.2f}x bfloat16's time",
                    f"at most {FLOAT32_COST}x",
                    cost <= FLOAT32_COST,
                )
            )
    for row in rows:
        mine = softmax.get(row.case)
        if row.contender in FASTER and mine is not None and row.case.dtype == _BF16:
            times = row.seconds / mine.seconds  # type: ignore[operator]
            goal = FASTER[row.contender]
            lines.append(
                report.verdict(
                    f"{row.case.label}: {times:.1f}x as fast as {row.contender}",
                    f"{goal:g}x",
                    times >= goal,
                )
            )
    large = [r for c, r in softmax.items() if c.dtype == _BF16 and c.d == MILLION.d and c.n >= 32768]
    if len(large) > 1:
        rates = [row.seconds / row.case.n**2 for row in large]  # type: ignore[operator]
        drift = max(rates) / min(rates) - 1
        sizes = ", ".join(f"{row.case.n:,}" for row in large)
        lines.append(
            report.verdict(f"time per N², N = {sizes}: within {drift:.0%}", f"{DRIFT:.0%}", drift <= DRIFT)
        )
    return lines


def finish(
    arguments: list[str],
    rows: list[Row],
    checks: list[tuple[str, Finding]],
    folder: Path,
    made_by: dict[str, Any],
) -> None:
    """Write checks and speeds as JSON, and draw the speeds."""
    document = report.document(report.command("gpu", arguments), rows, made_by)
    document["checks"] = [
        {"what": what, "share_of_bound": min(f.share, 1e9) if f.share == f.share else 1e9, "passed": f.passed}
        for what, f in checks
    ]
    loss.write(document, "gpu", folder)
