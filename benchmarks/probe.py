"""Try a contender in a process of its own: does it run, how much memory does it take, about how long.

    outcomes = probe(contender, cases)

A loss that runs out of memory, hangs or corrupts its CUDA context takes only its own process along, and is a
row that says so; what answers here is then timed in turns with the others. ``python -m benchmarks.probe`` is
the other end: it reads a request from its standard input and answers with a line of JSON per case.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.cases import Case
from benchmarks.contenders import Contender, Unavailable, contender, step

#: Pairs in the step that loads libraries and starts threads before memory is measured.
SMALL = 64

_MARK = "probe: "


@dataclass(frozen=True)
class Outcome:
    """What became of a case: bytes beyond the inputs and seconds of a step not warmed up, or why none."""

    memory: int | None = None
    seconds: float | None = None
    failure: str | None = None


def probe(who: Contender, cases: list[Case], *, patience: float, limit: float = 900.0) -> list[Outcome]:
    """Run one step of every case in a fresh process, smallest first.

    Args:
        patience: seconds that a step may take; larger cases expected to take longer are not tried.
        limit: seconds for all of them, compilation included.

    Returns:
        An outcome per case, in the order given.
    """
    try:
        who.loss(cases[0])
    except Unavailable as reason:
        return [Outcome(failure=str(reason)) for _ in cases]
    request = {
        "contender": who.name,
        "cases": [case.to_dict() for case in cases],
        "patience": patience,
        "threads": torch.get_num_threads(),
    }
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.probe"],
            input=json.dumps(request),
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=limit,
        )
        output, failure = done.stdout, _reason(done)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        failure = f"no answer within {limit:.0f} s"
    answers = [line.removeprefix(_MARK) for line in output.splitlines() if line.startswith(_MARK)]
    outcomes = [Outcome(**json.loads(answer)) for answer in answers]
    return outcomes + [Outcome(failure=failure)] * (len(cases) - len(outcomes))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGKILL:
        return "killed by the system: out of memory"
    if done.returncode < 0:
        return f"died of {signal.Signals(-done.returncode).name}"
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"ended with status {done.returncode}"


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    who, last = contender(request["contender"]), None
    for case in map(Case.from_dict, request["cases"]):
        growth = 0.0 if last is None else (case.n / last[0]) ** 2
        if last is not None and last[1] * growth > request["patience"]:
            outcome = Outcome(failure=f"not tried: about {last[1] * growth:.0f} s a step")
        else:
            outcome = _try(who, case)
            if outcome.seconds is not None:
                last = case.n, outcome.seconds
        print(_MARK + json.dumps(vars(outcome)), flush=True)


def _try(who: Contender, case: Case) -> Outcome:
    try:
        loss = who.loss(case)
        # A compiler's own memory is no part of a step: what compiles for a shape is warmed up at that shape.
        warm = case.inputs() if who.compiles else case.of_size(min(SMALL, case.n)).inputs()
        step(loss, warm)
        del warm
        inputs = case.inputs()
        start = time.perf_counter()
        memory = measure.extra_memory(lambda: step(loss, inputs), case.device)
        return Outcome(memory=memory, seconds=time.perf_counter() - start)
    except Unavailable as reason:
        return Outcome(failure=str(reason))
    except Exception as error:  # a contender may fail in any way; here it is a row that says how
        return Outcome(failure=measure.describe(error))


if __name__ == "__main__":
    main()
