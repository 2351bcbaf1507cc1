"""Find the fastest tiles for this machine's GPU and write them into the Triton backend's table.

    python -m benchmarks tune
    python -m benchmarks tune --variants half --widths 512

For every kernel (forward: statistics; backward: coefficients), variant (16-bit features; 16-bit features normalised
here; float32 in two halves) and width D: one choice after another is varied with all others held (shape and warps,
pipeline stages, order, programs an SM), twice around, and what was faster stays. A choice that does not compile, does
not fit or computes something else is passed over. Takes about a quarter of an hour, nearly all of it compiling.

Entries of the same GPU generation, kernel, variant and width are replaced; the rest of the table stays as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.report import say
from fastclip import blockwise, info
from fastclip.backends import Block, get_backend
from fastclip.objectives import Objective

if TYPE_CHECKING:
    from fastclip.backends.triton.plan import Tile

#: Values that a tile's fields take together.
Choice = dict[str, int]

#: What is varied, most important first. block_m is at most block_n: the edge kernels count on it.
AXES: tuple[tuple[Choice, ...], ...] = (
    tuple(
        {"block_m": m, "block_n": n, "block_d": d, "warps": warps, "stages": stages}
        for m, n, d, warps, stages in (
            (128, 256, 64, 8, 4),
            (128, 256, 64, 8, 3),
            (128, 256, 32, 8, 4),
            (128, 128, 64, 8, 4),
            (128, 128, 64, 8, 3),
            (128, 128, 64, 4, 3),
            (128, 128, 32, 8, 4),
            (64, 256, 64, 4, 3),
            (64, 128, 64, 4, 3),
        )
    ),
    tuple({"stages": stages} for stages in (2, 3, 4, 5, 6)),
    tuple({"group": group} for group in (4, 8, 12, 16)),
    tuple({"resident": resident} for resident in (1, 2, 3)),
)

KERNELS = ("statistics", "coefficients")
VARIANTS = {
    "half": (torch.float16, False),
    "factors": (torch.bfloat16, True),
    "float32": (torch.float32, False),
}
WIDTHS = (512, 768, 1024)

#: Pairs of the timed problem: enough for every SM to have a few dozen tiles.
N = 16384

#: How far a tile's result may lie from the first's, relative: another order of summing up, no more.
TOLERANCE = 1e-3


class Refused(Exception):
    """A tile that cannot be used; the message says why."""


def search(
    start: Tile, seconds: Callable[[Tile], float], axes: Sequence[Iterable[Choice]] = AXES, rounds: int = 2
) -> tuple[Tile, float]:
    """Return the fastest tile that varying one axis at a time finds, and its seconds.

    Args:
        seconds: times a tile, or raises `Refused`. It is asked about no tile twice.

    Raises:
        Refused: not even the start can be used, nor what is one step from it.
    """
    known: dict[Tile, float] = {}

    def time(tile: Tile) -> float:
        if tile not in known:
            try:
                known[tile] = seconds(tile)
            except Refused as reason:
                known[tile] = float("inf")
                say(f"passed over {tuple(tile)}: {reason}")
        return known[tile]

    best = start
    for _ in range(rounds):
        before = best
        for axis in axes:
            best = min((best, *(best._replace(**choice) for choice in axis)), key=time)
        if best == before:
            break
    if known[best] == float("inf"):
        raise Refused(f"no tile near {tuple(start)} runs here")
    return best, known[best]


class Bench:
    """Times one kernel of the Triton backend, as its launcher runs it, on one problem."""

    def __init__(self, kernel: str, variant: str, width: int, device: str = "cuda", n: int = N) -> None:
        self.kernel, self.device = kernel, device
        self.backend = get_backend("triton")
        self.dtype, normalize = VARIANTS[variant]
        inputs = Case("softmax", n, width, self.dtype, device).inputs()
        x, y, scale = (t.detach() for t in (inputs.image_features, inputs.text_features, inputs.logit_scale))
        self.problem = blockwise.pose(self.backend, x, y, scale, None, None, Objective.SOFTMAX, normalize, 0)
        self.statistics = blockwise.statistics(self.backend, self.problem, self.dtype, columns=True, keep=0)
        grad = torch.full((n,), 0.5 / n, device=device)
        self.weights = self.backend.weigh(
            self.problem, self.statistics.rows, self.statistics.cols, self.statistics.positive, grad, grad
        )
        self.shape = self.backend.coefficients_shape(self.problem)  # of the table's tile, for all of them
        self.first: Tensor | None = None

    def seconds(self, tile: Tile) -> float:
        """Return the median seconds of a pass with a tile.

        Raises:
            Refused: it does not divide the problem, does not run, or gives another result than the first tile did.
        """
        if self.problem.x.width % tile.block_d:
            raise Refused(f"block_d {tile.block_d} does not divide {self.problem.x.width} features")
        with using(self.kernel, tile):
            try:
                result = self.run()
                seconds = _median_seconds(self.run, self.device)
            except Exception as error:  # Triton's errors of this kind have no common class
                lines = str(error).strip().splitlines()
                raise Refused(f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]) from error
        if self.first is None:
            self.first = result
        elif not torch.allclose(
            result, self.first, rtol=TOLERANCE, atol=TOLERANCE * self.first.abs().mean().item()
        ):
            raise Refused("it computes something else")
        return seconds

    def run(self) -> Tensor:
        """Run the pass; return something of its result that a wrong tile would change."""
        if self.kernel == "statistics":
            done = blockwise.statistics(self.backend, self.problem, self.dtype, columns=True, keep=0)
            return torch.cat([done.rows.log_sum_exp(), done.cols.log_sum_exp()])  # type: ignore[union-attr]
        rows, cols = self.shape
        block = Block(slice(0, min(rows, len(self.problem.x))), slice(0, min(cols, len(self.problem.y))))
        out = self.backend.scratch_of(self.backend.scratch(self.problem, *block.shape), block)
        self.backend.coefficients(self.problem, block, self.weights, None, out)
        return out[0].sum(dim=0, dtype=torch.float32)


@contextmanager
def using(kernel: str, tile: Tile) -> Iterator[None]:
    """Have one kernel run with a tile instead of the table's."""
    from fastclip.backends.triton import plan

    table = plan.tile_for

    def tile_for(capability: tuple[int, int], of: str, variant: str, width: int) -> Tile:
        return tile if of == kernel else table(capability, of, variant, width)

    setattr(plan, "tile_for", tile_for)  # noqa: B010 (for a type checker a function is no variable)
    try:
        yield
    finally:
        setattr(plan, "tile_for", table)  # noqa: B010


def _median_seconds(run: Callable[[], object], device: str, least: float = 0.1) -> float:
    """Time a pass by events, after one that compiled it, for at least so many seconds."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def updated(
    table: dict[str, Any], found: list[dict[str, Any]], by: str, made_by: dict[str, Any]
) -> dict[str, Any]:
    """Return a tile table with entries put in, in place of those for the same purpose.

    Args:
        table: what tiles.json holds.
        found: entries without ``by``.
        by: a name for what made them, and `made_by` its description.
    """

    def purpose(entry: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(entry[field] for field in ("capability", "kernel", "variant", "width"))

    replaced = {purpose(entry) for entry in found}
    tiles = [entry for entry in table["tiles"] if purpose(entry) not in replaced]
    tiles += [{**entry, "by": by} for entry in found]
    tiles.sort(
        key=lambda entry: (
            entry["capability"],
            entry["variant"],
            entry["width"],
            entry["kernel"] != KERNELS[0],
        )
    )
    used = {entry["by"] for entry in tiles}
    authors = {**table["made_by"], by: made_by}
    return {"made_by": {name: what for name, what in authors.items() if name in used}, "tiles": tiles}


def written(table: dict[str, Any]) -> str:
    """Return a tile table as JSON, an entry a line: so that a change of one is a line of a diff."""
    authors = json.dumps(table["made_by"], indent=2, ensure_ascii=False).replace("\n", "\n  ")
    entries = ",\n".join("    " + json.dumps(entry) for entry in table["tiles"])
    return f'{{\n  "made_by": {authors},\n  "tiles": [\n{entries}\n  ]\n}}\n'


def main(arguments: list[str]) -> int:
    """Tune what the options name, and write the table; 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="default: both")
    add("--variants", nargs="+", choices=VARIANTS, default=tuple(VARIANTS), help="default: all")
    add("--widths", nargs="+", type=int, metavar="D", default=WIDTHS, help="default: 512 768 1024")
    add("--output", type=Path, help="table to update; default: the backend's own, tiles.json")
    options = parser.parse_args(arguments)
    reason = get_backend("triton").unavailable_reason()
    if not torch.cuda.is_available() or reason is not None:
        say(f"tuning times kernels on a GPU, and {reason or 'torch sees none'}; the table stays as it is")
        return 2
    from fastclip.backends.triton import plan

    capability = torch.cuda.get_device_capability()
    found = []
    for variant in options.variants:
        for width in options.widths:
            for kernel in options.kernels:
                bench = Bench(kernel, variant, width)
                start = plan.tile_for(capability, kernel, variant, width)
                try:
                    before = bench.seconds(start)
                    tile, seconds = search(start, bench.seconds)
                except Refused as reason:
                    say(f"{kernel}, {variant}, D = {width}: {reason}")
                    continue
                now, then = (f"{1e3 * t:.2f} ms" for t in (seconds, before))
                say(f"{kernel}, {variant}, D = {width}: {tuple(tile)}, {now}; was {then}")
                purpose = {"capability": ".".join(map(str, capability)), "kernel": kernel, "variant": variant}
                found.append({**purpose, "width": width, "tile": list(tile), "ms": round(1e3 * seconds, 3)})
    about, date = info.collect(), datetime.now(UTC).date().isoformat()
    device = torch.cuda.get_device_name()
    made_by = {
        "device": device,
        "processors": torch.cuda.get_device_properties().multi_processor_count,
        "pairs": N,
        "cuda": torch.version.cuda,
        "versions": {name: about["versions"][name] for name in ("fastclip", "torch", "triton")},
        "date": date,
    }
    path = options.output or plan.TABLE
    table = json.loads((path if path.exists() else plan.TABLE).read_text(encoding="utf-8"))
    path.write_text(written(updated(table, found, f"{device}, {date}", made_by)), encoding="utf-8")
    say(f"written: {path}; check the result with `python -m benchmarks gpu`")
    return 0
