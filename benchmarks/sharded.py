"""Measure losses over ranks of this machine: fastclip's modes, and open_clip's with local_loss and gather_with_grad.

    python -m benchmarks sharded -n 4096 -d 512 --ranks 1 2 4

Every rank is a process of one thread, and all compute one batch of N pairs; contenders take turns. The columns:

    time       of forward and backward pass, from barrier to barrier, the median over turns
    of CPU     seconds of CPU that all ranks spent on it together: what matters where ranks share cores
    FLOPs      in products, over all ranks, in units of N² D: 8 is the least that is exact without keeping logits
    received   bytes per rank and step, as the kernel counted them on the ranks' TCP connections
    formula    the same by benchmarks/costs.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import fastclip
from benchmarks import report, wire
from benchmarks.contenders import Unavailable, open_clip_losses
from benchmarks.costs import Setup
from benchmarks.report import duration, say, size

#: Takes image features, text features and multiplier of a rank; returns its loss.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

OPEN_CLIP = "open_clip, local_loss + gather_with_grad"
CONTENDERS = ("fastclip gather", "fastclip ring", OPEN_CLIP)

#: Seconds after which a rank that does not answer is given up.
PATIENCE = 600


@dataclass(frozen=True)
class Row:
    """One contender on some ranks; seconds are medians over turns, bytes and FLOPs are per step."""

    contender: str
    ranks: int
    pairs: int
    width: int
    seconds: float | None = None
    cpu_seconds: float | None = None
    flops: float | None = None
    received: int | None = None
    formula: int | None = None
    failure: str | None = None


def measure_world(ranks: int, pairs: int, width: int, turns: int) -> list[Row]:
    """Start a world of ranks and measure all contenders in it."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        answers = context.SimpleQueue()
        processes = [
            context.Process(
                target=_rank, args=(rank, ranks, f"{folder}/store", pairs, width, turns, answers), daemon=True
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
        for process in processes:
            process.kill()
        if failed:
            reason = f"ranks {failed} ended with an error or not within {PATIENCE} s"
            return [Row(name, ranks, pairs, width, failure=reason) for name in CONTENDERS]
        return answers.get()


def _rank(rank: int, ranks: int, store: str, pairs: int, width: int, turns: int, answers: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # open_clip 3 calls collectives by their old names
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, ranks),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=PATIENCE),
    )
    setup = Setup(pairs, ranks, width, itemsize=4, packed=0, normalize=False)
    generator = torch.Generator().manual_seed(rank)
    x = F.normalize(torch.randn(setup.shard, width, generator=generator), dim=1)
    y = F.normalize(x + 3 * torch.randn(x.shape, generator=generator) / width**0.5, dim=1)
    inputs = (x.requires_grad_(), y.requires_grad_(), torch.tensor(14.0, requires_grad=True))
    rows, steps = [], {}
    for name in CONTENDERS:
        try:
            loss = _loss(name, rank, ranks)
        except Unavailable as reason:
            rows.append(Row(name, ranks, pairs, width, failure=str(reason)))
            continue
        steps[name] = _Measured(loss, inputs)
    for turn in range(turns):
        for name in steps if turn % 2 == 0 else reversed(steps):
            steps[name].take()
    flops = {
        "fastclip gather": (setup.forward_flops + setup.backward_flops, setup.bytes("gather")),
        "fastclip ring": (setup.forward_flops + setup.backward_flops, setup.bytes("ring")),
        OPEN_CLIP: (setup.open_clip_flops, setup.open_clip_bytes()),
    }
    for name, step in steps.items():
        work, formula = flops[name]
        rows.append(
            Row(
                *(
                    name,
                    ranks,
                    pairs,
                    width,
                    statistics.median(step.seconds),
                    statistics.median(step.cpu_seconds),
                ),
                *(work * ranks / (pairs**2 * width), step.received, formula if ranks > 1 else 0),
            )
        )
    if rank == 0:
        answers.put(sorted(rows, key=lambda row: CONTENDERS.index(row.contender)))
    dist.destroy_process_group()


def _loss(name: str, rank: int, ranks: int) -> Loss:
    if name == OPEN_CLIP:
        module = open_clip_losses().ClipLoss(
            local_loss=True, gather_with_grad=True, rank=rank, world_size=ranks
        )
        return lambda x, y, scale: module(x, y, scale)
    mode = name.removeprefix("fastclip ")
    # The workspace would keep logits between the passes, and so do less than the formula says.
    return lambda x, y, scale: fastclip.clip_loss(x, y, scale, group=dist.group.WORLD, mode=mode, workspace=0)


class _Measured:
    """One contender's steps on this rank."""

    def __init__(self, loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        self.loss, self.inputs = loss, inputs
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._step()  # the first connects, allocates and compiles
        dist.barrier()
        before = wire.received()
        self._step()
        after = wire.received()
        self.received = None if before is None or after is None else after - before

    def take(self) -> None:
        """Take a turn: time the step from barrier to barrier, and its CPU over all ranks."""
        dist.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        self._step()
        cpu = time.process_time() - cpu
        dist.barrier()
        self.seconds.append(time.perf_counter() - start)
        total = torch.tensor(cpu)
        dist.all_reduce(total)
        self.cpu_seconds.append(total.item())

    def _step(self) -> None:
        for tensor in self.inputs:
            tensor.grad = None
        self.loss(*self.inputs).backward()


def table(rows: list[Row]) -> str:
    """Lay rows out for a terminal."""
    width = max(len(row.contender) for row in rows)
    lines = [
        f"  {'ranks':>5}  {'':<{width}}  {'time':>9}  {'of CPU':>9}  {'FLOPs':>6}  {'received':>9}  {'formula':>9}"
    ]
    for row in rows:
        start = f"  {row.ranks:>5}  {row.contender:<{width}}  "
        if row.failure is not None:
            lines.append(start + f"{'–':>9}  {row.failure}")
            continue
        lines.append(
            start + f"{duration(row.seconds):>9}  {duration(row.cpu_seconds):>9}  {row.flops:>6.1f}  "
            f"{size(row.received):>9}  {size(row.formula):>9}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure every world asked for; print a table and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sharded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-n", "--pairs", type=int, default=4096, metavar="N", help="of the whole batch; default %(default)s")
    add("-d", "--width", type=int, default=512, metavar="D", help="features; default %(default)s")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="R", help="default 1 2 4")
    add("--turns", type=int, default=7, help="steps timed of each contender; default %(default)s")
    add("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    uneven = [ranks for ranks in options.ranks if options.pairs % ranks]
    if uneven:
        parser.error(f"-n {options.pairs} cannot be shared evenly by {uneven[0]} ranks; choose a multiple")
    made_by = report.environment()
    rows: list[Row] = []
    for ranks in options.ranks:
        say(f"{ranks} rank{'s' * (ranks > 1)}, N = {options.pairs}, D = {options.width}")
        rows += measure_world(ranks, options.pairs, options.width, options.turns)
    print(table(rows))
    document = {
        "command": report.command("sharded", arguments),
        **made_by,
        "rows": [asdict(row) for row in rows],
    }
    say(f"results: {report.save(document, 'sharded-cpu', options.output)}")
    return 0
