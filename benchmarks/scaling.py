"""Plan a loss over many ranks: simulate a step of both modes from a single device's rates and a stated network.

    python -m benchmarks scaling                       the table of docs/scaling.md
    python -m benchmarks scaling --measure             from this machine's device, measured now
    python -m benchmarks scaling --rate 590 --inside 450 --across 50 --per-node 8
    python -m benchmarks scaling --write docs/scaling.md

A step is the loss's forward and backward pass alone. Each rank computes one thing and sends one thing at a time; work
and traffic are those of benchmarks/costs.py. The columns: pairs per rank; time and memory of both modes, features and
block left out; the time of the products alone, with no network; and what to use: the faster mode that fits.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import fastclip
from benchmarks import report
from benchmarks.costs import MODES, STATISTIC, Setup
from benchmarks.report import duration, size

RANKS = (8, 64, 512, 4096)
PAIRS = (2**15, 2**18, 2**20, 2**22, 2**24)

#: Fewer pairs than this on a rank are no batch anybody shares out.
LEAST_SHARD = 64

START, END = "<!-- table: python -m benchmarks scaling -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Device:
    """What one rank computes with.

    Attributes:
        forward_rate, backward_rate: FLOP/s of the products in either pass, everything around them included.
        overhead: seconds that a piece takes in a pass beside that (launches).
        memory: bytes that the loss may use.
        dtype, itemsize: of features, and bytes of one.
        packed: bytes per feature of the backend's own copy.
        source: where the numbers are from.
    """

    name: str
    forward_rate: float
    backward_rate: float
    overhead: float
    memory: float
    dtype: str
    itemsize: int
    packed: int
    source: str


#: The GPU of the tables until one has been measured: what the Triton kernels are designed to reach.
H100 = Device(
    name="H100",
    forward_rate=0.75 * 790e12,
    backward_rate=0.75 * 790e12,
    overhead=0.2e-3,
    memory=40e9,
    dtype="bfloat16",
    itemsize=2,
    packed=2,
    source="assumed: 75 % of 790 TFLOP/s and 0.2 ms a piece; not yet measured",
)


@dataclass(frozen=True)
class Network:
    """What joins ranks: nodes of `per_node`, bytes/s that each rank sends inside and between nodes, seconds a hop."""

    per_node: int = 8
    inside: float = 450e9
    across: float = 50e9
    hop_inside: float = 2e-6
    hop_across: float = 5e-6

    def __str__(self) -> str:
        return (
            f"nodes of {self.per_node}, {self.inside / 1e9:g} GB/s inside and {self.across / 1e9:g} GB/s between "
            f"them per rank and direction, {self.hop_inside * 1e6:g} and {self.hop_across * 1e6:g} µs a hop"
        )

    def shift(self, sent: float, ranks: int) -> float:
        """Return the seconds of every rank's handing so many bytes to the next: the slowest hop's."""
        if ranks <= self.per_node:
            return self.hop_inside + sent / self.inside
        return self.hop_across + sent / self.across

    def gather(self, total: float, ranks: int) -> float:
        """Return the seconds of an all-gather or reduce-scatter of so many bytes in all.

        The ranks of a node bring each byte into it once, over all their links, and pass it on inside.
        """
        nodes = max(1, ranks // self.per_node)
        inside = total * (ranks - 1) / ranks / self.inside
        across = total * (1 - 1 / nodes) / (min(ranks, self.per_node) * self.across)
        return max(inside, across) + (nodes - 1) * self.hop_across + (ranks // nodes - 1) * self.hop_inside


@dataclass(frozen=True)
class Step:
    """Seconds of a step's two passes, and of the products alone; bytes of memory."""

    forward: float
    backward: float
    products: float
    memory: int

    @property
    def seconds(self) -> float:
        """Return the whole step's."""
        return self.forward + self.backward


def simulate(setup: Setup, mode: str, device: Device, network: Network) -> Step:
    """Play a step of one rank; all ranks do the same at the same time."""
    ranks, shard = setup.ranks, setup.shard * setup.width
    forward, backward = setup.forward_flops / device.forward_rate, setup.backward_flops / device.backward_rate
    texts, gradients = shard * setup.itemsize, shard * 4
    merging = 0.0
    if setup.columns:
        vector = STATISTIC * setup.pairs
        merging = 4 * network.gather(
            vector, ranks
        )  # two all-reduces, each of which gathers what it has scattered
    spreading = network.gather(STATISTIC * setup.pairs, ranks) if setup.columns else 0.0
    if mode == "gather":
        own, rest = forward / ranks, forward * (ranks - 1) / ranks
        arrival = network.gather(texts * ranks, ranks)
        first = max(own + device.overhead, arrival) + rest + device.overhead + merging
        second = spreading + backward + 2 * device.overhead + network.gather(gradients * ranks, ranks)
    else:
        per_piece = device.overhead + forward / ranks, device.overhead + backward / ranks
        first = _ring(ranks, per_piece[0], network.shift(texts, ranks), 0.0) + merging
        second = spreading + _ring(
            ranks, per_piece[1], network.shift(texts, ranks), network.shift(gradients, ranks)
        )
    return Step(first, second, forward + backward, setup.memory(mode))


def _ring(ranks: int, compute: float, passing: float, following: float) -> float:
    """Return the seconds of a pass around the ring, one link, one processor.

    A shard is passed on while it is computed with; its gradient follows when that is done, while the next shard is
    computed with.
    """
    now = link = ready = 0.0  # the processor's clock, the link's, and when the last gradient has arrived
    for step in range(ranks):
        if step < ranks - 1:
            link = max(link, now) + passing
        arrived = link
        now = max(now + compute, ready)  # the gradient that this rank adds its part to must be here
        if step and following:
            link = max(link, now) + following
            ready = link
        if step < ranks - 1:
            now = max(now, arrived)
    return max(now, ready)


def hiding_shard(setup: Setup, device: Device, network: Network) -> int:
    """Return the pairs per rank from which a ring's transfers take no longer than its products, in both passes."""
    speed = network.inside if setup.ranks <= network.per_node else network.across
    forward = setup.itemsize * device.forward_rate / (2 * speed)
    backward = (setup.itemsize + 4) * device.backward_rate / (6 * speed)
    return round(max(forward, backward))


def verdict(steps: dict[str, Step], device: Device) -> str:
    """Return the faster mode of those that fit; nothing fits, or both alike within 2 %, are said in words."""
    fitting = [mode for mode in MODES if steps[mode].memory <= device.memory]
    if len(fitting) < 2:
        return f"{fitting[0]}, the other does not fit" if fitting else "more ranks"
    slower, faster = sorted(MODES, key=lambda mode: -steps[mode].seconds)
    return "either" if steps[slower].seconds < 1.02 * steps[faster].seconds else faster


def rows(
    device: Device, network: Network, width: int, pairs: tuple[int, ...], ranks: tuple[int, ...]
) -> list[dict]:
    """Simulate every batch on every number of ranks."""
    found: list[dict[str, Any]] = []
    for r in ranks:
        for n in pairs:
            if n // r < LEAST_SHARD:
                continue
            setup = Setup(n, r, width, device.itemsize, device.packed)
            steps = {mode: simulate(setup, mode, device, network) for mode in MODES}
            found.append(
                {
                    "ranks": r,
                    "pairs": n,
                    "shard": setup.shard,
                    **{mode: asdict(step) for mode, step in steps.items()},
                    "bytes": {mode: setup.bytes(mode) for mode in MODES},
                    "use": verdict(steps, device),
                }
            )
    return found


def markdown(found: list[dict[str, Any]], device: Device, network: Network, width: int) -> str:
    """Lay rows out as a table of a document."""
    lines = [
        f"Device: {device.name}, {device.source}. Network: {network}. D = {width}, {device.dtype}, normalised, softmax "
        f"both ways; {device.memory / 1e9:.0f} GB for the loss.",
        "",
        "| ranks | batch | per rank | gather | ring | products alone | gather needs | ring needs | use |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in found:
        times = [row[mode]["forward"] + row[mode]["backward"] for mode in MODES]
        cells = [f"{row['ranks']:,}", f"{row['pairs']:,}", f"{row['shard']:,}", *map(duration, times)]
        cells += [
            duration(row["gather"]["products"]),
            *(size(row[mode]["memory"]) for mode in MODES),
            row["use"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(width: int, dtype: torch.dtype) -> Device:
    """Measure this machine's device on strips of two sizes: the rate is the larger one's beyond the smaller's time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small, large = ((1024, 8192), (8192, 65536)) if device == "cuda" else ((256, 1024), (1024, 4096))
    times = [_strip_seconds(m, n, width, dtype, device) for m, n in (small, large)]
    flops = [2 * m * n * width for m, n in (small, large)]
    forward, backward = (
        passes * (flops[1] - flops[0]) / max(times[1][i] - times[0][i], 1e-9)
        for i, passes in enumerate((1, 3))
    )
    overhead = max(0.0, times[0][0] - flops[0] / forward)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    memory = torch.cuda.mem_get_info()[0] if device == "cuda" else 4e9
    rates = f"{forward / 1e12:.3g} TFLOP/s forward, {backward / 1e12:.3g} backward"
    source = f"measured: {rates}, {duration(overhead)} a piece"
    packed = 2 if device == "cuda" else 4
    kind = str(dtype).removeprefix("torch.")
    return Device(name, forward, backward, overhead, memory, kind, dtype.itemsize, packed, source)


def _strip_seconds(m: int, n: int, width: int, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Return the seconds of a strip's forward and backward pass, the least of five: others share the machine."""
    x, y = (
        F.normalize(torch.randn(rows, width), dim=1).to(device, dtype).requires_grad_() for rows in (m, n)
    )
    passes: tuple[list[float], list[float]] = ([], [])
    for _ in range(6):
        x.grad = y.grad = None
        start = _now(device)
        loss = fastclip.clip_loss(x, y, 20.0, normalize=True, workspace=0)
        middle = _now(device)
        loss.backward()
        for times, seconds in zip(passes, (middle - start, _now(device) - middle), strict=True):
            times.append(seconds)
    return min(passes[0][1:]), min(passes[1][1:])


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def write(path: Path, table: str) -> None:
    """Put a table between the marks of a document.

    Raises:
        ValueError: the document has no marks.
    """
    text = path.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{path} has no lines {START!r} and {END!r} to put the table between")
    path.write_text(f"{before}{START}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Simulate; print the table, or write it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--measure", action="store_true", help="take rates from this machine's device")
    add("--rate", type=float, metavar="TFLOP/s", help="of the device, in both passes")
    add("--memory", type=float, metavar="GB", help="that the loss may use on a rank")
    add("--inside", type=float, metavar="GB/s", help="a rank's bandwidth inside a node")
    add("--across", type=float, metavar="GB/s", help="and between nodes")
    add("--per-node", type=int, metavar="R", help="ranks of a node")
    add("-d", "--width", type=int, default=1024, metavar="D", help="features; default %(default)s")
    add("-n", "--pairs", type=int, nargs="+", default=PAIRS, metavar="N", help="batches")
    add("--ranks", type=int, nargs="+", default=RANKS, metavar="R")
    add("--json", action="store_true", help="print numbers rather than a table")
    add("--write", type=Path, metavar="FILE", help="put the table into a document, between its marks")
    options = parser.parse_args(arguments)
    device, network = H100, Network()
    if options.measure:
        device = measure(options.width, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    if options.rate:
        rate = options.rate * 1e12
        source = f"stated: {options.rate:g} TFLOP/s"
        device = replace(device, name="device", forward_rate=rate, backward_rate=rate, source=source)
    if options.memory:
        device = replace(device, memory=options.memory * 1e9)
    if options.inside:
        network = replace(network, inside=options.inside * 1e9)
    if options.across:
        network = replace(network, across=options.across * 1e9)
    if options.per_node:
        network = replace(network, per_node=options.per_node)
    found = rows(device, network, options.width, tuple(options.pairs), tuple(options.ranks))
    table = markdown(found, device, network, options.width)
    if options.json:
        print(json.dumps({"device": asdict(device), "network": asdict(network), "rows": found}, indent=1))
    elif options.write:
        write(options.write, table)
        report.say(f"table written to {options.write}")
    else:
        print(table)
        for r in options.ranks:
            setup = Setup(r * LEAST_SHARD, r, options.width, device.itemsize, device.packed)
            shard = hiding_shard(setup, device, network)
            print(f"\n{r:,} ranks: a ring hides its transfers from {shard:,} pairs a rank on", end="")
        print()
    return 0
