"""What comes out of a measurement: rows, a table, and a JSON document with the machine that made it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from fastclip import info

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Row:
    """One contender at one case.

    Attributes:
        seconds: per step, forward and backward, the median over turns.
        spread: interquartile range over the median.
        turns: how many there were.
        floor_share: time of 8 N² D FLOPs at the matmul rate of the same turns, over this time.
        speedup: plain torch's time over this, of the same turns.
        memory: bytes beyond the inputs at the peak, gradients included.
        memory_share: of plain torch's.
        errors: relative to float64, by name of the output.
        failure: why there are no numbers.
    """

    case: Case
    contender: str
    seconds: float | None = None
    spread: float | None = None
    turns: int = 0
    floor_share: float | None = None
    speedup: float | None = None
    memory: int | None = None
    memory_share: float | None = None
    errors: dict[str, float] | None = None
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON types, without what it lacks."""
        fields = {name: value for name, value in vars(self).items() if name != "case" and value is not None}
        return {**self.case.to_dict(), **fields}


def command(name: str, arguments: list[str]) -> str:
    """Return the command line of a benchmark, ready to paste; without the folder for results, which means nothing
    elsewhere."""
    kept = iter(arguments)
    lasting = [a for a in kept if not (a.startswith("--output=") or (a == "--output" and next(kept, "")))]
    return shlex.join(["python", "-m", "benchmarks", name, *lasting])


def verdict(found: str, goal: str, reached: bool) -> str:
    """Say whether what was found reaches its goal."""
    return f"{found}; goal {goal}: {'reached' if reached else 'NOT reached'}"


def document(command: str, rows: list[Row], made_by: dict[str, Any]) -> dict[str, Any]:
    """Return the rows with what made them: the command, and the `environment()` at its start."""
    return {"command": command, **made_by, "rows": [row.to_dict() for row in rows]}


def environment() -> dict[str, Any]:
    """Return what a number depends on beside the code: date, machine, threads, load, versions, commit."""
    about = info.collect()
    extension, gpus = about["extension"], about["gpu"]["devices"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": about["platform"],
        "cpu": about["cpu"],
        "cpu_kernels": extension["isa"] if extension["built"] else None,
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "gpu": gpus,
        "cuda": torch.version.cuda,
        "versions": about["versions"],
        "commit": _commit(),
    }


def save(document: dict[str, Any], name: str, folder: Path = RESULTS) -> Path:
    """Write the document to `folder`/`name`.json and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(rows: list[Row]) -> str:
    """Lay the rows of one case out for a terminal."""
    width = max(len(row.contender) for row in rows)
    with_errors = any(row.errors for row in rows)
    head = f"  {'':<{width}}  {'time':>9}  {'±':>5}  {'of matmul':>9}  {'speedup':>7}"
    head += f"  {'memory':>9}  {'of torch':>8}"
    lines = [head + ("  relative errors" if with_errors else "")]
    for row in rows:
        start = f"  {row.contender:<{width}}  "
        if row.seconds is None:
            lines.append(start + f"{'–':>9}  {row.failure}")
            continue
        line = start + f"{duration(row.seconds):>9}  {percent(row.spread):>5}  {percent(row.floor_share):>9}"
        line += f"  {'–' if row.speedup is None else f'{row.speedup:.2f}':>7}  {size(row.memory):>9}"
        line += f"  {percent(row.memory_share):>8}"
        if row.errors:
            line += "  " + ", ".join(f"{name} {error:.0e}" for name, error in row.errors.items())
        lines.append(line)
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """Write a time with three digits and its unit."""
    if seconds is None:
        return "–"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{_digits(seconds * factor)} {unit}"
    return "0"


def size(n: float | None) -> str:
    """Write bytes as MiB or GiB, with three digits."""
    if n is None:
        return "–"
    return f"{_digits(n / 2**30)} GiB" if n >= 2**30 else f"{_digits(n / 2**20)} MiB"


def percent(share: float | None) -> str:
    """Write a share as a percentage of two digits or more."""
    return "–" if share is None else f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def say(text: str) -> None:
    """Tell the person waiting what is going on, apart from the results."""
    print(f"… {text}", file=sys.stderr, flush=True)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
