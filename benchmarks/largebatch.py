"""Measure one step of the demo's encoders at large batches: all activations kept, and by micro-batches.

    python -m benchmarks largebatch                        batches of 1,024, 4,096 and 16,384 pairs
    python -m benchmarks largebatch -n 16384 --micro 128

A step is encoding, the loss over the whole batch, and the gradient of every weight. Memory is the peak beyond the
inputs, gradients included, of a fresh process (benchmarks/measure.py). A plain step that would not fit is not
tried: its row has the memory that smaller batches let expect.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastclip
from benchmarks import measure, report
from benchmarks.contenders import available_memory
from benchmarks.report import duration, say, size

#: Batch from which the memory of a larger plain step is foretold.
PROBE = 512


@dataclass(frozen=True)
class Row:
    """One step: with micro-batches, or plain (None); a failure says why numbers are missing or only foretold."""

    pairs: int
    micro_batch: int | None
    seconds: float | None = None
    memory: int | None = None
    failure: str | None = None


def measured(pairs: int, micro: int | None, preset: str) -> Row:
    """Measure a step in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(pairs, micro, preset, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(
            f"a step of {pairs} pairs ended its process; it may have been out of memory"
        ) from error
    finally:
        process.join()


def _measure(pairs: int, micro: int | None, preset: str, pipe: Any) -> None:
    from fastclip.grad_cache import cached_backward
    from fastclip.models import CLIP, PRESETS

    torch.manual_seed(0)
    model = CLIP(PRESETS[preset])
    config = model.config

    def encode_image(images: Tensor) -> Tensor:
        return model.encode_image(model.preprocess(images))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return fastclip.clip_loss(x, y, model.logit_scale.exp(), normalize=True)

    def step(images: Tensor, tokens: Tensor, micro: int | None) -> None:
        model.zero_grad(set_to_none=True)
        cached_backward(loss, (encode_image, images), (model.encode_text, tokens), micro_batch_size=micro)

    side, length = config.vision.image_size, config.text.context_length
    images = torch.randint(0, 256, (pairs, 3, side, side), dtype=torch.uint8)
    tokens = torch.randint(1, config.text.vocab_size, (pairs, length))
    step(images[:8], tokens[:8], 4)
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    memory = measure.extra_memory(lambda: step(images, tokens, micro))
    pipe.send(Row(pairs, micro, time.perf_counter() - start, memory))


def table(rows: list[Row]) -> str:
    """Lay rows out for a terminal."""
    lines = [f"  {'batch':>7}  {'micro-batches':>13}  {'time':>9}  {'memory':>9}"]
    for row in rows:
        micro = "none" if row.micro_batch is None else str(row.micro_batch)
        note = "" if row.failure is None else f"  {row.failure}"
        lines.append(
            f"  {row.pairs:>7,}  {micro:>13}  {duration(row.seconds):>9}  {size(row.memory):>9}{note}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure both kinds of step at every batch; print a table and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks largebatch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-n", "--pairs", type=int, nargs="+", default=[1024, 4096, 16384], metavar="N", help="batches")
    add("--micro", type=int, default=128, metavar="B", help="pairs of a micro-batch; default %(default)s")
    add("--model", default="demo", help="preset of the encoders; default %(default)s")
    add("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    made_by = report.environment()
    say(f"{PROBE} pairs, plain")
    probe = measured(PROBE, None, options.model)
    rows = []
    for pairs in options.pairs:
        say(f"{pairs:,} pairs, micro-batches of {options.micro}")
        rows.append(measured(pairs, options.micro, options.model))
        expected = None if probe.memory is None else probe.memory * pairs // PROBE
        if expected is not None and expected > 0.7 * available_memory():
            rows.append(
                Row(pairs, None, memory=expected, failure="foretold from a smaller batch; does not fit here")
            )
            continue
        say(f"{pairs:,} pairs, plain")
        rows.append(measured(pairs, None, options.model))
    print(table(rows))
    document = {
        "command": report.command("largebatch", arguments),
        **made_by,
        "rows": [asdict(row) for row in rows],
    }
    say(f"results: {report.save(document, 'largebatch-cpu', options.output)}")
    return 0
