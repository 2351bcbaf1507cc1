"""Time whole training steps on this machine's GPU: pictures per second, and the share of a step spent in the loss.

    python -m benchmarks throughput

ViT-B/32 at batches of 4,096, whole where the GPU has the memory, and of 32,768, in micro-batches of 1,024, in amp_bf16.
Pictures and captions are on the device already: what is timed is the step of the training program, not the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, report
from benchmarks.report import duration, percent, say
from fastclip.models import PRESETS

#: Pairs in a batch, and in a micro-batch. (A pair's activations take about 32 MB: 4,096 of them need 130 GB.)
BATCHES = ((4096, None), (4096, 1024), (32_768, 1024))
LR = 1e-4

#: What measuring a batch is expected to take on a recent GPU, at most, and then to spare.
SECONDS_PER_PAIR = 2e-3

#: Share of a large step that the loss may take.
LOSS_SHARE = 0.03


def measured(
    model: str = "ViT-B-32", *, steps: int = 5, left: Callable[[], float] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows of whole training steps on this machine's GPU: pictures per second, and the loss's share of them.

    A batch that does not fit has a failure in place of numbers, and so has one for which too little time is `left`.
    """
    for batch, micro in BATCHES:
        row: dict[str, Any] = {"model": model, "batch": batch, "micro_batch": micro, "precision": "amp_bf16"}
        if left is not None and left() < batch * SECONDS_PER_PAIR:
            yield {**row, "failure": "left out for want of time"}
            continue
        try:
            torch.cuda.reset_peak_memory_stats()
            yield {
                **row,
                **throughput(model, batch, micro, "cuda", steps),
                "memory": torch.cuda.max_memory_allocated(),
            }
        except (torch.OutOfMemoryError, RuntimeError, ImportError) as error:
            yield {**row, "failure": measure.describe(error)}
        torch.cuda.empty_cache()


def throughput(model: str, batch: int, micro: int | None, device: str, steps: int) -> dict[str, Any]:
    """Time the whole step of the training program, which reads the loss back, and the loss alone.

    In amp_bf16, with the fused optimizer, pictures and captions already on the device.

    Raises:
        RuntimeError: a step failed; out of memory, as a rule.
    """
    from fastclip.data.shapes import ShapesSource
    from fastclip.train.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
    from fastclip.train.loop import Trainer
    from fastclip.train.step import Inputs

    config = Config(
        data=DataConfig(batch_size=batch, micro_batch_size=micro, workers=0),
        model=ModelConfig(model=model, precision="amp_bf16"),
        optim=OptimConfig(lr=LR, warmup=0),
        run=RunConfig(device=device),
    )
    side = PRESETS[model].vision.image_size
    source = ShapesSource(side, length=batch)
    trainer = Trainer(config, PRESETS[model], source, quiet=True)
    captions = source.fetch(range(min(batch, 256)), seed=0, epoch=0).captions
    labels = torch.arange(batch, device=device)
    inputs = Inputs(
        torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device),
        trainer.tokenizer(captions).to(device)[labels % len(captions)],
        labels,
    )
    x, y = (
        torch.randn(batch, trainer.model.config.embed_dim, device=device, requires_grad=True)
        for _ in range(2)
    )

    def loss(i: int) -> None:
        x.grad = y.grad = None
        trainer.take_step._loss(x, y, labels).backward()

    timings = measure.in_turns(
        {"step": lambda i: trainer.take_step(inputs, LR), "loss": loss}, device, least=steps, most=steps
    )
    if broken := next((timing.failure for timing in timings.values() if timing.failure), None):
        raise RuntimeError(broken)
    return {
        "step_seconds": timings["step"].median,
        "pictures_per_second": batch / timings["step"].median,
        "loss_share": timings["loss"].over(timings["step"]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows of `measured` out for a terminal or for Markdown."""
    lines = [
        "| model | batch | micro-batch | step | pictures/s | in the loss | memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        micro = "–" if row["micro_batch"] is None else f"{row['micro_batch']:,}"
        start = f"| {row['model']} | {row['batch']:,} | {micro} | "
        if "failure" in row:
            lines.append(f"{start}{row['failure']} | | | |")
            continue
        lines.append(
            f"{start}{duration(row['step_seconds'])} | {row['pictures_per_second']:,.0f} | "
            f"{percent(row['loss_share'])} | {report.size(row['memory'])} |"
        )
    return "\n".join(lines)


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """Say of every batch whether the loss's share of a step is as small as it should be."""
    return [
        report.verdict(
            f"{row['model']}, batch {row['batch']:,}: {percent(row['loss_share'])} of the step in the loss",
            f"below {percent(LOSS_SHARE)}",
            row["loss_share"] < LOSS_SHARE,
        )
        for row in rows
        if "loss_share" in row
    ]


def on_gpu(output: Path = report.RESULTS, left: Callable[[], float] | None = None) -> int:
    """Measure on the GPU, print the table and write the numbers; return the exit status.

    Args:
        output: folder for results.
        left: how many seconds it may take still; None: as many as it does.
    """
    if not torch.cuda.is_available():
        say("no GPU is available to PyTorch")
        return 1
    made_by = report.environment()
    rows = []
    for row in measured(left=left):
        say(f"measured a batch of {row['batch']:,}")
        rows.append(row)
    print("\n".join([table(rows), *goals(rows)]))
    document = {"command": report.command("throughput", []), **made_by, "rows": rows}
    say(f"written: {report.save(document, 'throughput-cuda', output)}")
    return 0


def main(arguments: list[str]) -> int:
    """Measure, print a table and write the numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder for results")
    return on_gpu(parser.parse_args(arguments).output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
