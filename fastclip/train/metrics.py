"""Keep a run's metrics: JSON lines in a file always, other watchers beside it, a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from fastclip.train.watchers import Watcher

logger = logging.getLogger("fastclip.train")


class MetricLog:
    """Append to a JSON-lines file, one object per line: step, epoch, then keys such as "train/loss".

    Args:
        path: the file. Lines after `resume_step` are removed from it: the resumed run writes them again.
        resume_step: the step the run starts from.
        watchers: where every line goes as well.
    """

    def __init__(self, path: Path, resume_step: int = 0, watchers: Sequence[Watcher] = ()) -> None:
        kept = [line for line in read(path) if line["step"] <= resume_step] if resume_step else []
        aside = path.with_name(path.name + ".partial")
        aside.write_text("".join(_line(values) for values in kept))
        os.replace(aside, path)
        self.path, self.watchers = path, watchers
        self._failed = False

    def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Append one line. A disk that is full costs the line and, once, a warning: not the run."""
        line = _line({"step": step, "epoch": round(epoch, 4), **values})
        try:
            with self.path.open("a") as file:
                file.write("\n" + line if self._failed else line)  # what failed may have left half a line
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("warning: %s takes no more lines (%s); the run goes on", self.path, error)
            self._failed = True
        for watcher in self.watchers:
            try:
                watcher.write(step, values)
            except OSError as error:
                logger.warning("warning: %s takes no more lines (%s); the run goes on", watcher, error)
                self.watchers = [other for other in self.watchers if other is not watcher]

    def close(self) -> None:
        """Let the watchers finish."""
        for watcher in self.watchers:
            watcher.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file. One cut short, by a crash or a full disk, is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
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

    @property
    def has_bar(self) -> bool:
        """Whether somebody watches at a terminal."""
        return self._bar is not None

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
    """Average the times of the steps since the last line of metrics.

    Args:
        world_size: ranks that take the same steps on pairs of their own.
        device: whose memory is watched.
    """

    def __init__(self, world_size: int = 1, device: torch.device | None = None) -> None:
        self._world_size = world_size
        self._device = torch.device("cpu") if device is None else device
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
        """End a step over so many pairs of this rank."""
        now = time.perf_counter()
        self._busy += now - self._last
        self._last = now
        self._steps += 1
        self._samples += samples

    def flush(self) -> dict[str, float]:
        """Return seconds per step, of which waiting for data, pairs per second, and memory (MiB); start anew."""
        each = self._samples / max(self._busy, 1e-9)
        figures = {
            "train/samples_per_second": each * self._world_size,
            "train/samples_per_second_per_gpu": each,
            "train/batch_time": self._busy / self._steps,
            "train/data_time": self._waiting / self._steps,
        }
        memory = peak_memory(self._device)
        if memory is not None:
            figures["train/memory_mib"] = round(memory / 2**20, 1)
        self._reset()
        return figures


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: of torch's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
