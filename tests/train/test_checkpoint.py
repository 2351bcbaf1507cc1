"""Checkpoints: complete or absent, plain data, and for the right model only."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastclip.models import CLIP, PRESETS
from fastclip.train import checkpoint
from fastclip.train.checkpoint import CheckpointError
from fastclip.train.config import OptimConfig, RunConfig
from fastclip.train.loop import Trainer
from fastclip.train.optim import build_optimizer


@pytest.fixture
def saved(make_trainer: Callable[..., Trainer], tmp_path: Path) -> tuple[Trainer, Path]:
    trainer = make_trainer(tmp_path / "run")
    trainer.train(until=3)
    path = trainer.save()
    assert path is not None
    return trainer, path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_the_whole_state(saved: tuple[Trainer, Path]) -> None:
    trainer, path = saved
    assert path.name == "step_00000003"
    assert names(path) == ["model.safetensors", "state.json", "training.safetensors"]
    held = checkpoint.load(path)
    assert held.state["step"] == 3
    assert (held.state["epoch"], held.state["position"]) == (0, 48)
    assert held.config == trainer.config.to_dict()
    assert held.model.keys() == trainer.model.state_dict().keys()
    for name, _ in trainer.model.named_parameters():
        assert {
            f"optimizer.{name}.{slot}" for slot in ("exp_avg", "exp_avg_sq", "step")
        } <= held.training.keys()
    assert "rng.cpu" in held.training


def test_restore_gives_back_every_tensor(
    saved: tuple[Trainer, Path], make_trainer: Callable[..., Trainer]
) -> None:
    trainer, path = saved
    draws = torch.rand(3)  # the generator goes on after the save
    other = make_trainer(seed=8)
    other.resume(checkpoint.load(path))
    assert torch.equal(torch.rand(3), draws)
    assert (other.step, other.cursor) == (trainer.step, trainer.cursor)
    for a, b in zip(trainer.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        for slot, value in trainer.optimizer.state[a].items():
            assert torch.equal(value, other.optimizer.state[b][slot])


@pytest.mark.parametrize("moment", ["model.safetensors", "training.safetensors", "rename"])
def test_a_crash_while_saving_leaves_the_last_checkpoint(
    saved: tuple[Trainer, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    trainer, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    trainer.train(until=5)
    save_file, rename = checkpoint.save_file, Path.rename

    def full_disk(tensors: dict, file: Path) -> None:
        if file.name == moment:
            raise OSError("No space left on device")
        save_file(tensors, file)

    def stopped(self: Path, target: Path) -> Path:
        if moment == "rename":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises((OSError, KeyboardInterrupt)):
        trainer.save()
    assert names(path.parent) == ["step_00000003"]
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    run = RunConfig(resume=str(path.parents[1]))
    assert checkpoint.find(run) == path

    monkeypatch.undo()
    trainer.save()
    assert names(path.parent) == ["step_00000003", "step_00000005"]


def test_what_a_killed_process_left_behind_is_no_checkpoint_and_is_cleared(
    saved: tuple[Trainer, Path],
) -> None:
    trainer, path = saved
    partial = path.parent / ".step_00000004.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoint.find(RunConfig(resume=str(path.parent))) == path
    trainer.train(until=4)
    trainer.save()
    assert names(path.parent) == ["step_00000003", "step_00000004"]


def test_saving_a_step_again_replaces_it(saved: tuple[Trainer, Path]) -> None:
    trainer, path = saved
    with torch.no_grad():
        trainer.model.logit_scale.fill_(2.0)
    trainer.save()
    assert names(path.parent) == ["step_00000003"]
    assert checkpoint.load(path).model["logit_scale"].item() == 2.0


def test_only_the_newest_are_kept(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", save_every_n_steps=1, keep_checkpoints=2)
    trainer.train(until=5)
    assert names(tmp_path / "run" / "checkpoints") == ["step_00000004", "step_00000005"]


def test_a_checkpoint_of_another_model_names_keys_and_shapes(saved: tuple[Trainer, Path]) -> None:
    _, path = saved
    tiny = PRESETS["tiny"]
    wider = CLIP(dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, width=48)))
    before = {key: value.clone() for key, value in wider.state_dict().items()}
    optimizer = build_optimizer(wider, make_optim())
    with pytest.raises(CheckpointError, match="made for another model") as caught:
        checkpoint.restore(checkpoint.load(path), wider, optimizer)
    assert "positional_embedding is (77, 16) there, (77, 48) here" in str(caught.value)
    assert "--model" in str(caught.value)
    for key, value in wider.state_dict().items():
        assert torch.equal(value, before[key])

    deeper = CLIP(dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, layers=2)))
    with pytest.raises(CheckpointError, match=r"entries of this model are not in it: .*resblocks\.1"):
        checkpoint.restore(checkpoint.load(path), deeper, build_optimizer(deeper, make_optim()))
    pooled = CLIP(dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, pool="mean")))
    with pytest.raises(
        CheckpointError, match=r"1 of its entries are not in this model: visual\.class_embedding"
    ):
        checkpoint.restore(checkpoint.load(path), pooled, build_optimizer(pooled, make_optim()))


def make_optim() -> OptimConfig:
    return OptimConfig()


def test_damage_is_noticed(saved: tuple[Trainer, Path]) -> None:
    _, path = saved
    model = path / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    model.write_bytes(whole)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    (path / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        checkpoint.load(path)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        checkpoint.load(path)


def test_a_pickle_is_refused_without_opening_it(tmp_path: Path) -> None:
    opened = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (opened,))

    file = tmp_path / "epoch_1.pt"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is a file; a checkpoint of this program is a folder"):
        checkpoint.find(RunConfig(resume=str(file)))
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    for name in ("model.safetensors", "training.safetensors"):
        (folder / name).write_bytes(file.read_bytes())
    (folder / "state.json").write_text('{"format": 1, "state": {}, "config": {}, "model_config": {}}')
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(folder)
    assert not opened.exists()


def test_find_takes_the_newest_by_number(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "a" / "checkpoints"
    for name in ("step_00000900", "step_100000000", "step_00001000", ".step_200000000.partial", "notes"):
        (folder / name).mkdir(parents=True)
    newest = folder / "step_100000000"
    assert checkpoint.find(RunConfig(resume="latest", logs=str(tmp_path / "logs"), name="a")) == newest
    assert checkpoint.find(RunConfig(resume=str(folder))) == newest
    assert checkpoint.find(RunConfig(resume=str(folder / "step_00000900"))).name == "step_00000900"
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        checkpoint.find(RunConfig(resume="latest", logs=str(tmp_path / "logs"), name="b"))
