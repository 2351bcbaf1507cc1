"""`--dry-run`: build a run, take two steps, and say how long it will take and how much memory."""

from __future__ import annotations

import dataclasses
import time

from fastclip.train import distributed
from fastclip.train.build import build_model_config, build_source
from fastclip.train.config import Config
from fastclip.train.feed import Cursor, batches
from fastclip.train.loop import Trainer
from fastclip.train.metrics import peak_memory
from fastclip.train.optim import learning_rate
from fastclip.train.program import describe

_MIB = 2**20


def dry_run(config: Config) -> None:
    """Print what a run would be and cost. Nothing is written.

    The first step is left out of the forecast: it pays for what happens once (memory, kernels, compilation).
    """
    world = distributed.start(config.run.device, config.run.dist_timeout)
    model_config = build_model_config(config)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=None))
    trainer = Trainer(config, model_config, build_source(config, model_config), world=world)
    model = sum(parameter.nbytes for parameter in trainer.model.parameters())
    trained = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    waited, stepped, losses = [], [], []
    feed = batches(
        trainer.source,
        config.data.rows_per_rank,
        seed=config.run.seed,
        start=Cursor(),
        count=2,
        workers=config.data.workers,
        rank=world.rank,
        world_size=world.size,
        max_bad_share=config.data.max_bad_share,
    )
    trainer.model.train()
    for number in range(2):
        asked = time.perf_counter()
        inputs = trainer.inputs(next(feed).pairs)
        came = time.perf_counter()
        outcome = trainer.take_step(
            inputs, learning_rate(number, trainer.total_steps, trainer.steps_per_epoch, config.optim)
        )
        losses.append(outcome.loss)
        waited.append(came - asked)
        stepped.append(time.perf_counter() - came)
    peak = peak_memory(trainer.device)
    distributed.finish()
    if not world.is_main:
        return
    # Batches are made while the step before is taken.
    seconds = max(waited[1], stepped[1])
    lines = [
        *describe(trainer),
        f"loss of the first two steps: {losses[0]:.4f}, {losses[1]:.4f} nats",
        f"weights {model / _MIB:,.0f} MiB, gradients {trained / _MIB:,.0f} MiB, "
        f"Adam's state {2 * trained / _MIB:,.0f} MiB",
        f"peak memory so far: {'not known here' if peak is None else f'{peak / _MIB:,.0f} MiB'} of this process",
        f"step: {stepped[1]:.3f} s and {waited[1]:.3f} s for data, {trainer.batch_size / seconds:,.0f} pairs/s",
        f"forecast: {trainer.total_steps:,} steps in about {clock(seconds * trainer.total_steps)}, without tests; "
        f"a checkpoint takes {(model + 2 * trained) / _MIB:,.0f} MiB",
    ]
    print("\n".join(lines))


def clock(seconds: float) -> str:
    """Return a length of time in the unit that fits."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
