"""What the ranks of tests/train/test_ranks.py do: train the tiny model on blocks, in the world they find."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastclip.data.source import Pairs
from fastclip.distributed import CollectiveError
from fastclip.train import checkpoint, distributed, zeroshot
from fastclip.train.checkpoint.ranks import whole
from fastclip.train.evaluate import Result, embed
from fastclip.train.loop import Trainer
from fastclip.train.metrics import read
from fastclip.train.signals import Stopped
from fastclip.train.step import Inputs, Outcome
from tests.train.conftest import TINY, Blocks, make_config

Course = tuple[list[float], dict[str, Tensor], dict[str, float]]


def trainer(folder: Path | None = None, source: Blocks | None = None, **settings: Any) -> Trainer:
    """Return this rank's trainer; `batch_size` is that of all ranks together."""
    world = distributed.start("cpu", 1.0)
    settings["batch_size"] = settings.get("batch_size", 24) // world.size
    source = Blocks() if source is None else source
    return Trainer(make_config(**settings), TINY, source, folder, world=world, quiet=True)


def course(one: Trainer, until: int | None = None) -> Course:
    """Train; return the losses, the weights and the figures of the held-out test (rank 0 has those)."""
    losses, take = [], one.take_step

    def record(inputs: Inputs, lr: float) -> Outcome:
        outcome = take(inputs, lr)
        losses.append(outcome.loss)
        return outcome

    one.take_step = record  # type: ignore[assignment]
    one.train(until)
    weights = whole(one.model.state_dict())
    figures = one.exams.results[0].metrics if one.exams.results else {}
    return losses, {name: value.clone() for name, value in weights.items()}, figures


def train(settings: dict[str, Any], until: int | None = None, folder: Path | None = None) -> Course:
    """Train from the start, and save in the end."""
    one = trainer(folder, **settings)
    result = course(one, until)
    if folder is not None:
        one.save()
    return result


def resume(settings: dict[str, Any], folder: Path, step: int) -> Course:
    """Train from a checkpoint on."""
    one = trainer(folder, **settings)
    one.resume(checkpoint.load(folder / "checkpoints" / f"step_{step:08}"))
    return course(one)


def sit_exams() -> tuple[Tensor, Tensor]:
    """Return the held-out features as an untrained model sees them."""
    one = trainer()
    test = one.source.held_out()[0]
    embedded = embed(test, one.exams.images, one.exams.texts, batch_size=5, world=one.world)
    return embedded.images, embedded.texts


def average_gradients(piece: int) -> list[list[float]]:
    """Give each rank gradients of its own, of two dtypes, some missing; return what they are after the ranks shared."""
    world, rank = distributed.start("cpu", 1.0), dist.get_rank()
    distributed._PIECE = piece
    sizes = [
        (3, torch.float32),
        (2, torch.float32),
        (4, torch.float64),
        (1, torch.float32),
        (0, torch.float32),
    ]
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    for number, parameter in enumerate(parameters):
        if number != rank:
            parameter.grad = torch.full_like(parameter, 10.0 * number + rank)
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    world.average_gradients([*parameters, frozen])
    assert frozen.grad is None
    return [parameter.grad.tolist() for parameter in parameters]  # type: ignore[union-attr]


def average_statistics() -> tuple[list[float], int]:
    """Give each rank means of its own, and a count; return what they are after the ranks have shared."""
    norm = torch.nn.BatchNorm1d(2)
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]) * dist.get_rank())
    norm.num_batches_tracked.fill_(7)
    distributed.start("cpu", 1.0).average_statistics(norm)
    return norm.running_mean.tolist(), int(norm.num_batches_tracked)


def nan_on(rank: int, step: int, settings: dict[str, Any]) -> tuple[Course, int]:
    """Give one rank features that are no numbers, in one step; check that weights stay."""
    one = trainer(**settings)
    if one.scaler is not None:
        one.scaler.factor = 2.0**8  # with which nothing else overflows
    forward, take, stayed = one.encoders.forward, one.take_step, []

    def encode(images: Tensor | None, texts: Tensor | None) -> Tensor:
        features = forward(images, texts)
        return features * float("nan") if one.step == step and dist.get_rank() == rank else features

    def watch(inputs: Inputs, lr: float) -> Outcome:
        before = one.model.visual.proj.detach().clone()
        outcome = take(inputs, lr)
        stayed.append(torch.equal(before, one.model.visual.proj))
        return outcome

    one.encoders.forward, one.take_step = encode, watch  # type: ignore[method-assign, assignment]
    result = course(one)
    assert [number for number, same in enumerate(stayed) if same] == [step]
    return result, one.skipped_steps


class Rotten(Blocks):
    """Blocks of which one rank cannot read a single one."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rotten = dist.get_rank() == rank

    def fetch(self, indices: Any, *, seed: int, epoch: int) -> Pairs:
        pairs = super().fetch(indices, seed=seed, epoch=epoch)
        return pairs.take(torch.arange(0)) if self.rotten else pairs


def unreadable_on(rank: int, folder: Path) -> str:
    """Return how a run ends in which one rank cannot read its data."""
    try:
        trainer(folder, source=Rotten(rank), steps=4).train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


class Spotted(Blocks):
    """Blocks of which a few cannot be read; one is known from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.skip("block 1000")

    def skip(self, name: str) -> None:
        if name not in self.skipped_files:
            self.skipped_files[name] = "spotted"
            self.skipped["spotted"] += 1

    def fetch(self, indices: Any, *, seed: int, epoch: int) -> Pairs:
        pairs = super().fetch(indices, seed=seed, epoch=epoch)
        for index in pairs.indices.tolist():
            if index % 20 == 7:
                self.skip(f"block {index}")
        return pairs.take(torch.nonzero(pairs.indices % 20 != 7)[:, 0])


def skipping(folder: Path, steps: int, step: int | None = None, save: bool = True) -> dict[str, int]:
    """Train to some step, if wanted from a checkpoint, on data that are bad here and there; return what was counted."""
    one = trainer(folder, source=Spotted(), steps=8, max_bad_share=1.0)
    if step is not None:
        one.resume(checkpoint.load(folder / "checkpoints" / f"step_{step:08}"))
    one.train(steps)
    if save:
        one.save()
    return dict(one.skipped)


def abandoned_by(rank: int) -> str:
    """Let a rank leave in the middle of a run; return how it ends for the others."""
    one = trainer(steps=6)
    take = one.take_step

    def leave(inputs: Inputs, lr: float) -> Outcome:
        if one.step == 3 and dist.get_rank() == rank:
            os._exit(1)
        return take(inputs, lr)

    one.take_step = leave  # type: ignore[assignment]
    try:
        one.train()
    except (distributed.RankError, CollectiveError) as error:
        return str(error)
    return "done"


def signalled(rank: int, step: int, folder: Path) -> str:
    """Let a signal arrive on one rank during a step; return how the run ends."""
    one = trainer(folder, steps=6)
    take = one.take_step

    def note(inputs: Inputs, lr: float) -> Outcome:
        if one.step == step and dist.get_rank() == rank:
            one.stop.received = signal.SIGINT
        return take(inputs, lr)

    one.take_step = note  # type: ignore[assignment]
    try:
        one.train()
    except Stopped as stopped:
        return str(stopped)
    return "done"


def classify(classes: Path, batch_size: int) -> tuple[int, int, Result]:
    """Return how many pictures this rank has encoded, in how many batches, and what the ranks have found together."""
    one = trainer(zeroshot_data=str(classes))
    sizes = []

    def encode(images: Tensor) -> Tensor:
        sizes.append(int(images.flatten(1).any(1).sum()))  # without those that stand in for missing ones
        return one.exams.images(images)

    assert one.exams.classes is not None
    found = zeroshot.classify(
        one.exams.classes, encode, one.exams.texts, batch_size=batch_size, world=one.world
    )
    return sum(sizes), len(sizes), found


def signalled_in_an_exam(
    rank: int, exam: str, folder: Path, settings: dict[str, Any]
) -> tuple[str, list[str]]:
    """Let a signal arrive on one rank in the first batch of an exam; return how the run ends.

    Also the keys of the figures that are in the log.
    """
    one = trainer(folder, **settings)
    first = {"retrieval": "images", "zeroshot": "texts"}[exam]
    sit, encode = getattr(one.exams, exam), getattr(one.exams, first)

    def note(inputs: object) -> Tensor:
        if dist.get_rank() == rank:
            one.stop.received = signal.SIGINT
        return encode(inputs)

    def begin() -> object:
        setattr(one.exams, first, note)
        return sit()

    setattr(one.exams, exam, begin)
    try:
        one.train()
        said = "done"
    except Stopped as stopped:
        said = str(stopped)
    dist.barrier()
    return said, sorted({key for line in read(folder / "metrics.jsonl") for key in line if "val" in key})


def logged(folder: Path) -> tuple[list[int], bool]:
    """Train with a folder; return the steps in the log, and whether this rank holds any results."""
    one = trainer(folder, steps=3)
    one.train()
    dist.barrier()
    steps = [line["step"] for line in read(folder / "metrics.jsonl") if "train/loss" in line]
    return steps, bool(one.exams.results)
