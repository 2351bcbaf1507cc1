"""How things are measured: time in turns, memory as what the system had to give, the rate of torch's matmul.

Time. Clocks, turbo and other people's jobs change from minute to minute, so numbers from two moments do
not compare. Contenders therefore take turns, A B C, C B A, …, and a ratio is the median over the turns of the
ratio within a turn. On CUDA a turn is timed by events, over inputs that rotate so that none is in the cache.

Memory. On CPU it is the peak of the process's resident set less what was resident before the step, in a fresh
process (benchmarks/probe.py). The allocator's own count would not do: it sees torch's tensors alone, not what
the matmul library, OpenMP or a C++ kernel takes. On CUDA everything large goes through torch's allocator, and
its peak is taken.
"""

from __future__ import annotations

import ctypes
import gc
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

#: One step; takes the number of the step, to choose among inputs by.
Step = Callable[[int], object]

#: Seconds that a turn lasts at least: shorter steps are repeated within it.
SHORTEST_TURN = {"cpu": 0.01, "cuda": 0.02}

#: Seconds of a step that is not called a second time only to know how long it takes.
LONG = 10.0


@dataclass
class Timing:
    """Seconds per step, one number for each turn, in order; none, and why, for a step that failed."""

    seconds: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def median(self) -> float:
        """Return the median step, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Return the interquartile range over the median: how far to trust it."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def over(self, other: Timing) -> float:
        """Return this time over another's, the median over their common turns."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def in_turns(
    steps: Mapping[str, Step],
    device: str = "cpu",
    *,
    seconds: float = 10.0,
    least: int = 3,
    most: int = 30,
) -> dict[str, Timing]:
    """Time steps in turns, forwards and backwards through the list.

    Args:
        steps: by name.
        device: "cpu" or "cuda", where they run.
        seconds: to spend in all, as far as `least` turns and `most` allow.

    Returns:
        Timings by name, each of the same number of turns. A step that fails in its first calls has none.
    """
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    timings = {name: Timing() for name in steps}
    repeats, expected = {}, 0.0
    for name, step in steps.items():
        try:
            once = clock(step, 0, 1)  # the first call compiles, tunes and allocates
            if once < LONG:
                once = clock(step, 1, 1)
        except Exception as error:
            timings[name].failure = describe(error)
            continue
        repeats[name] = max(1, math.ceil(SHORTEST_TURN[device] / once))
        expected += once * repeats[name]
    running = list(repeats)
    turns = min(max(least, int(seconds / expected)), most) if running else 0
    done = dict.fromkeys(running, 2)
    for turn in range(turns):
        with _garbage_waiting():
            for name in running if turn % 2 == 0 else reversed(running):
                timings[name].seconds.append(clock(steps[name], done[name], repeats[name]))
                done[name] += repeats[name]
    return timings


@contextmanager
def _garbage_waiting() -> Iterator[None]:
    """Collect garbage before, not within: one contender's is not another's work."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def describe(error: Exception) -> str:
    """Return what a row says of a failure."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def _cpu_seconds(step: Step, first: int, repeats: int) -> float:
    start = time.perf_counter()
    for i in range(first, first + repeats):
        step(i)
    return (time.perf_counter() - start) / repeats


def _cuda_seconds(step: Step, first: int, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for i in range(first, first + repeats):
        step(i)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


@dataclass(frozen=True)
class Matmul:
    """A step of torch's matmul alone, and how many floating-point operations it does."""

    step: Step
    flops: int


def matmul(n: int, d: int, dtype: torch.dtype, device: str = "cpu") -> Matmul:
    """Return the products of a loss over N pairs, with nothing between them: the floor of every exact loss.

    On CPU its four products over one block of up to 4096², into memory that is reused; for a 16-bit dtype in
    float32 where that is faster, as on processors without 16-bit products. On CUDA a product of 8192³, the
    library at its best.
    """
    if device == "cuda":
        side = 8192
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return Matmul(lambda i: torch.mm(a, b.T, out=out), 2 * side**3)
    if dtype.itemsize == 2:
        trials = {dtype: _products(256, d, dtype), torch.float32: _products(256, d, torch.float32)}
        times = {each: min(_cpu_seconds(step, 0, 1) for _ in range(3)) for each, step in trials.items()}
        dtype = min(times, key=times.__getitem__)
    side = min(n, 4096)
    return Matmul(_products(side, d, dtype), 8 * side**2 * d)


def _products(side: int, d: int, dtype: torch.dtype) -> Step:
    x, y = (torch.randn(side, d).to(dtype) for _ in range(2))
    block, dx, dy = torch.empty(side, side, dtype=dtype), torch.empty_like(x), torch.empty_like(y)

    def products(i: int) -> None:
        torch.mm(x, y.T, out=block)
        torch.mm(x, y.T, out=block)
        torch.mm(block, y, out=dx)
        torch.mm(block.T, x, out=dy)

    return products


def extra_memory(step: Callable[[], object], device: str = "cpu") -> int | None:
    """Run a step; return the bytes it needed at its peak beyond those in use before, or None if unknown here.

    On CPU call it in a process that has run nothing as large, but the same on something small: thread pools
    and code pages are then in the baseline, and memory that the C library keeps for reuse is not.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before_pages = _reset_resident_peak()
    step()
    peak = _resident("VmHWM")
    return None if before_pages is None or peak is None else max(0, peak - before_pages)


def _reset_resident_peak() -> int | None:
    """Give free memory back and set the high-water mark to what is resident now; return that in bytes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):  # not Linux with glibc
        return None
    return _resident("VmRSS")


def _resident(field: str) -> int | None:
    try:
        found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
