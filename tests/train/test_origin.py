"""A run that is resumed on other data says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from fastclip.train import checkpoint
from fastclip.train.checkpoint import Checkpoint
from fastclip.train.loop import Trainer
from tests.train.conftest import Blocks


@pytest.fixture
def saved(make_trainer: Callable[..., Trainer], tmp_path: Path) -> Checkpoint:
    trainer = make_trainer(tmp_path)
    trainer.train(3)
    path = trainer.save()
    assert path is not None
    return checkpoint.load(path)


def test_the_same_data_are_no_news(
    make_trainer: Callable[..., Trainer], saved: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    assert saved.state["data"] == {"name": "blocks", "kind": "Blocks", "pairs": 108}
    make_trainer().resume(saved)
    assert not caplog.text


@pytest.mark.parametrize(("copies", "steps"), [(2, 8), (5, 22)])
def test_another_number_of_pairs_is_a_warning(
    make_trainer: Callable[..., Trainer],
    saved: Checkpoint,
    caplog: pytest.LogCaptureFixture,
    copies: int,
    steps: int,
) -> None:
    trainer = make_trainer(source=Blocks(copies))
    trainer.resume(saved)
    assert (
        f"trained on blocks (108 pairs, Blocks), this run goes on with blocks ({36 * copies} pairs"
        in caplog.text
    )
    assert "place in it cannot be exact" in caplog.text and f"step 3 of {steps}" in caplog.text
    trainer.train()
    assert trainer.step == steps


def test_as_many_pairs_of_another_name_may_be_the_same_in_another_place(
    make_trainer: Callable[..., Trainer], saved: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    source = Blocks()
    source.name = "bricks"
    make_trainer(source=source).resume(saved)
    assert "goes on with bricks (108 pairs, Blocks)" in caplog.text
    assert "as if they were the same pairs in another place or format" in caplog.text


def test_a_checkpoint_that_does_not_know_its_data_is_resumed(
    make_trainer: Callable[..., Trainer], saved: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    state = {key: value for key, value in saved.state.items() if key != "data"}
    trainer = make_trainer(source=Blocks(2))
    trainer.resume(dataclasses.replace(saved, state=state))
    assert trainer.step == 3 and not caplog.text
