"""A saved run, and what the tests look at in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastclip.train import checkpoint
from fastclip.train.config import RunConfig
from fastclip.train.loop import Trainer

FILES = ["manifest.json", "model.safetensors", "state.json", "training.safetensors"]


@pytest.fixture
def saved(make_trainer: Callable[..., Trainer], tmp_path: Path) -> tuple[Trainer, Path]:
    trainer = make_trainer(tmp_path / "run")
    trainer.train(until=3)
    path = trainer.save()
    assert path is not None
    return trainer, path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def steps(folder: Path) -> list[int]:
    return [int(name.removeprefix("step_")) for name in names(folder) if name.startswith("step_")]


def latest(folder: Path) -> Path:
    return checkpoint.find(RunConfig(resume=str(folder)))


def flip(file: Path, at: int) -> None:
    whole = bytearray(file.read_bytes())
    whole[at] ^= 1
    file.write_bytes(whole)
