"""The list of what was skipped: there however a run ends, each file once, as many as are counted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastclip.train import checkpoint
from fastclip.train.distributed import World
from fastclip.train.loop import Trainer
from fastclip.train.signals import Stopped
from fastclip.train.skipped import SkippedFiles
from fastclip.train.step import Inputs, Outcome
from tests.train.conftest import Blocks
from tests.train.ranked import Spotted


def lines(folder: Path) -> list[str]:
    return (folder / "skipped.txt").read_text().splitlines()


def interrupted(trainer: Trainer, step: int, error: BaseException | None = None) -> None:
    """Train, and in the middle of a step raise an error, or get a signal."""
    take = trainer.take_step

    def stumble(inputs: Inputs, lr: float) -> Outcome:
        if trainer.step == step:
            if error is not None:
                raise error
            trainer.stop.received = signal.SIGTERM
        return take(inputs, lr)

    trainer.take_step = stumble  # type: ignore[assignment]
    with pytest.raises(Stopped if error is None else type(error)):
        trainer.train()


@pytest.mark.parametrize("error", [None, RuntimeError("out of memory")], ids=["SIGTERM", "crash"])
def test_it_is_there_however_a_run_ends(
    make_trainer: Callable[..., Trainer], tmp_path: Path, error: BaseException | None
) -> None:
    trainer = make_trainer(tmp_path, Spotted(), max_bad_share=1.0)
    interrupted(trainer, 2, error)
    assert lines(tmp_path)[0] == "block 1000\tspotted"  # known from the start
    assert set(lines(tmp_path)) == {
        f"{file}\t{reason}" for file, reason in trainer.source.skipped_files.items()
    }
    assert 2 < len(lines(tmp_path)) == trainer.skipped.total()


def test_a_resumed_run_adds_to_it_and_counts_what_it_holds(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Also what was found between the checkpoint and a crash, in another order than it will be found again."""
    first = make_trainer(tmp_path, Spotted(), max_bad_share=1.0)
    first.train(1)
    path = first.save()
    assert path is not None
    interrupted(first, 3, RuntimeError("out of memory"))
    before = lines(tmp_path)
    with open(tmp_path / "skipped.txt", "a") as file:
        file.write("block 2")  # cut short by a crash
    second = make_trainer(tmp_path, Spotted(), max_bad_share=1.0)
    second.resume(checkpoint.load(path))
    assert second.skipped == {"spotted": len(before)}
    second.train()
    assert lines(tmp_path)[: len(before)] == before
    assert sorted(lines(tmp_path)) == sorted(
        f"block {number}\tspotted" for number in (7, 27, 47, 67, 87, 107, 1000)
    )
    assert second.skipped == {"spotted": 7}


def test_counts_of_a_checkpoint_without_a_list_hold(tmp_path: Path) -> None:
    """The run has moved to another folder, or its list was never written."""
    source = Spotted()
    skipped = SkippedFiles(source, World(), tmp_path / "skipped.txt")
    skipped.resume({"spotted": 3, "truncated": 1})
    assert skipped.counts == {"spotted": 3, "truncated": 1}
    source.skip("block 7")
    skipped.note()
    assert skipped.counts == {"spotted": 4, "truncated": 1}
    assert lines(tmp_path) == ["block 1000\tspotted", "block 7\tspotted"]


def test_what_is_known_from_the_start_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Spotted()
    SkippedFiles(source, World(), None)  # a run that has no list, as the control
    SkippedFiles(source, World(rank=1, size=2), tmp_path / "skipped.txt")
    assert not caplog.text
    SkippedFiles(source, World(), tmp_path / "skipped.txt")
    assert "1 pairs or files of blocks cannot be used: spotted (1); skipped.txt names them" in caplog.text
    source.lost = 1234
    SkippedFiles(source, World(), tmp_path / "skipped.txt")
    assert "spotted (1), and about 1,234 more pairs are lost in shards that are cut short" in caplog.text


def test_nothing_skipped_is_no_file(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(tmp_path, Blocks(), steps=1).train()
    assert not (tmp_path / "skipped.txt").exists()


def test_a_list_that_cannot_be_written_is_a_warning_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, folder = Spotted(), tmp_path / "run"
    folder.write_text("in the way")
    skipped = SkippedFiles(source, World(), folder / "skipped.txt")
    for number in (7, 27):
        skipped.note()
        source.skip(f"block {number}")
    assert caplog.text.count("cannot list skipped files") == 1
    folder.unlink()
    skipped.note()
    assert lines(folder) == [f"block {number}\tspotted" for number in (1000, 7, 27)]
