"""Training on the same pairs from every format gives the same losses, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastclip.data import open_source
from fastclip.train.feed import Cursor, batches
from fastclip.train.loop import Trainer
from tests.data import formats


def losses(trainer: Trainer, place: Path | str, cache: Path, workers: int) -> list[float]:
    """Train for two epochs; return the loss of every step."""
    source = open_source(place, 16, cache_dir=cache)
    feed = batches(
        source, 16, seed=0, start=Cursor(), count=4, workers=workers, rank=0, world_size=1, max_bad_share=0.5
    )
    return [trainer.take_step(trainer.inputs(batch.pairs), 1e-3).loss for batch in feed]


def test_two_epochs_from_every_format_are_the_same_run(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    wanted = formats.samples(40)
    curves = {}
    for number, (name, write) in enumerate(formats.FORMATS.items()):
        root = tmp_path / str(number)
        root.mkdir()
        curves[name] = losses(make_trainer(), write(wanted, root), tmp_path / "cache", workers=number % 3)
    first = curves.pop("folder")
    assert len(first) == 4 == len(set(first))
    assert curves == dict.fromkeys(curves, first)


def test_bad_pairs_do_not_change_a_run_that_is_repeated(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    wanted = [
        formats.Sample(s.name, b"<html>" if i % 5 == 0 else s.picture, s.caption)
        for i, s in enumerate(formats.samples(40))
    ]
    place = formats.shards(wanted, tmp_path)
    runs = [losses(make_trainer(), place, tmp_path / "cache", workers) for workers in (0, 2)]
    assert runs[0] == runs[1]
