"""Keep a run's metrics: JSON lines in a file always, a progress bar or plain lines for whoever watches."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class MetricLog:
    """Append to a JSON-lines file, one object per line: step, epoch, then keys such as "train/loss".

    Args:
        path: the file. Lines after `resume_step` are removed from it: the resumed run writes them again.
        resume_step: the step the run starts from.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        kept = [line for line in read(path) if line["step"] <= resume_step] if resume_step else []
        aside = path.with_name(path.name + ".partial")
        aside.write_text("".join(_line(values) for values in kept))
        os.replace(aside, path)
        self.path = path

    def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(_line({"step": step, "epoch": round(epoch, 4), **values}))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file. A last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _line(values: Mapping[str, Any]) -> str:
    # JSON knows neither NaN nor infinity; null is what other readers accept.
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(plain) + "\n"


class Console:
    """Show progress: a bar on a terminal, plain lines otherwise.

    Args:
        total: steps of the run.
        start: steps already done.
        label: stands before the bar.
        stream: where to write; standard error by default.
        quiet: show nothing.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        label: str = "train",
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._bar: Any = None
        if not quiet and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=start, desc=label, unit="step", file=self._stream, dynamic_ncols=True
            )

    def advance(self, **figures: str) -> None:
        """Count one step; the figures stand behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update()

    def line(self, text: str, *, bar_says_it: bool = False) -> None:
        """Print a line; where a bar is shown, not one that would only repeat it."""
        if self._quiet:
            return
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        elif not bar_says_it:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class Meter:
    """Average the times of the steps since the last line of metrics."""

    def __init__(self) -> None:
        self._reset()
        self.restart()

    def _reset(self) -> None:
        self._steps = self._samples = 0
        self._busy = self._waiting = 0.0

    def restart(self) -> None:
        """Start the next step's clock: what happened since the last `count` is no part of a step."""
        self._last = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for data."""
        self._waiting += seconds

    def count(self, samples: int) -> None:
        """End a step over so many pairs."""
        now = time.perf_counter()
        self._busy += now - self._last
        self._last = now
        self._steps += 1
        self._samples += samples

    def flush(self) -> dict[str, float]:
        """Return seconds per step, of which waiting for data, and pairs per second; start anew."""
        figures = {
            "train/samples_per_second": self._samples / max(self._busy, 1e-9),
            "train/batch_time": self._busy / self._steps,
            "train/data_time": self._waiting / self._steps,
        }
        self._reset()
        return figures
