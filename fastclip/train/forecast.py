"""`--dry-run`: build a run, take two steps, and say how long it will take and how much memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastclip.train import checkpoint, distributed
from fastclip.train.build import build_source
from fastclip.train.config import Config
from fastclip.train.feed import batches
from fastclip.train.loop import Trainer
from fastclip.train.metrics import peak_memory
from fastclip.train.optim import learning_rate
from fastclip.train.program import choose_model, describe, place

_MIB = 2**20


def dry_run(config: Config) -> None:
    """Print what a run would be and cost. Nothing is written.

    The first step is left out of the forecast: it pays for what happens once (memory, kernels, compilation).
    """
    world = distributed.start(config.run.device, config.run.dist_timeout)
    _, path = place(config, world)
    saved = None if path is None else checkpoint.load(path)
    model_config = choose_model(config, saved)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=None))
    source = build_source(config, model_config)
    trainer = Trainer(config, model_config, source, world=world, resumed=saved is not None)
    if saved is not None:
        trainer.resume(saved)
        saved = None
    facts, left = describe(trainer), trainer.total_steps - trainer.step
    if path is not None:
        facts.append(
            f"resumes from {path}: {trainer.step:,} of {trainer.total_steps:,} steps are done, {max(0, left):,} remain"
        )
    steps = list(_two_steps(trainer)) if left > 0 else []
    peak = peak_memory(trainer.device)
    distributed.finish()
    if world.is_main:
        print("\n".join([*facts, *_sizes(trainer), *_costs(trainer, steps, peak, left)]))


@dataclass(frozen=True)
class _Step:
    """What a step took."""

    loss: float
    waited: float  #: seconds for its batch
    stepped: float  #: seconds


def _two_steps(trainer: Trainer) -> Iterator[_Step]:
    """Take the run's next two steps, where the learning rate says they are."""
    data, first = trainer.config.data, trainer.step
    feed = batches(
        trainer.source,
        data.rows_per_rank,
        seed=trainer.config.run.seed,
        start=trainer.cursor,
        count=2,
        workers=data.workers,
        rank=trainer.world.rank,
        world_size=trainer.world.size,
        max_bad_share=data.max_bad_share,
    )
    trainer.model.train()
    for number in (first, first + 1):
        asked = time.perf_counter()
        inputs = trainer.inputs(next(feed).pairs)
        came = time.perf_counter()
        lr = learning_rate(number, trainer.total_steps, trainer.steps_per_epoch, trainer.config.optim)
        outcome = trainer.take_step(inputs, lr)
        yield _Step(outcome.loss, came - asked, time.perf_counter() - came)


def _sizes(trainer: Trainer) -> list[str]:
    """Say what the model and its training keep in memory (with --fsdp: all devices together) and write to the disk."""
    weights = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
    trained = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    averaged = trainer.averaged
    average = 0 if averaged is None else sum(tensor.nbytes for tensor in averaged.weights.values())
    return [
        f"weights {weights / _MIB:,.0f} MiB, gradients {trained / _MIB:,.0f} MiB, "
        f"Adam's state {2 * trained / _MIB:,.0f} MiB"
        + (f", average {average / _MIB:,.0f} MiB" if average else ""),
        f"a checkpoint takes {(weights + 2 * trained + average) / _MIB:,.0f} MiB on disk, and "
        f"{trainer.config.run.keep_checkpoints} are kept",
    ]


def _costs(trainer: Trainer, steps: list[_Step], peak: int | None, left: int) -> list[str]:
    """Say how long the run takes and how much memory, by the steps that were measured."""
    if not steps:
        return ["forecast: nothing is left to do"]
    last = steps[-1]
    # Batches are made while the step before is taken.
    seconds = max(last.waited, last.stepped)
    known = "peak memory is not known here" if peak is None else f"peak memory {peak / _MIB:,.0f} MiB"
    if trainer.device.type == "cuda":
        reserved = torch.cuda.max_memory_reserved(trainer.device)
        known += f" of tensors on this GPU, for which {reserved / _MIB:,.0f} MiB are reserved"
    elif peak is not None:
        known += " of this process"
    return [
        f"loss of two steps: {', '.join(f'{step.loss:.4f}' for step in steps)} nats",
        f"{known}, in two steps; later steps are alike, tests and saving may need more",
        f"step: {last.stepped:.3f} s and {last.waited:.3f} s for data, {trainer.batch_size / seconds:,.0f} pairs/s",
        f"forecast: {left:,} steps in about {clock(seconds * left)}, without tests",
    ]


def clock(seconds: float) -> str:
    """Return a length of time in the unit that fits."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
