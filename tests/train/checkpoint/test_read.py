"""Reading: nothing is believed that the manifest does not vouch for; data only, and for the right model."""

from __future__ import annotations

import dataclasses
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch

from fastclip.models import CLIP, PRESETS
from fastclip.train import checkpoint
from fastclip.train.checkpoint import CheckpointError, NoCheckpoint, manifest
from fastclip.train.config import OptimConfig, RunConfig
from fastclip.train.loop import Trainer
from fastclip.train.optim import build_optimizer
from tests.train.checkpoint.conftest import FILES, flip, latest

# Reading: nothing is believed that the manifest does not vouch for.


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_or_missing_byte_is_noticed(saved: tuple[Trainer, Path], name: str) -> None:
    _, path = saved
    file, choose = path / name, random.Random(name)
    whole = file.read_bytes()
    read = checkpoint.verify(path)
    for _ in range(20):
        flip(file, choose.randrange(len(whole)))
        try:
            assert checkpoint.verify(path) == read and name == "manifest.json"  # a blank between its words
        except CheckpointError as error:
            assert "damaged" in str(error) or "format" in str(error) or "incomplete" in str(error)
        file.write_bytes(whole)
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"missing|no manifest"):
        checkpoint.load(path)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    saved: tuple[Trainer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    trainer, path = saved
    trainer.train(until=5)
    newest = trainer.save()
    assert newest is not None and latest(path.parents[1]) == newest
    flip(newest / "training.safetensors", 5000)
    assert latest(path.parents[1]) == path
    assert "training.safetensors is damaged: its SHA-256" in caplog.text
    assert f"falling back to {path}" in caplog.text
    with pytest.raises(CheckpointError, match="damaged"):  # one that is named is taken or refused
        checkpoint.load(checkpoint.find(RunConfig(resume=str(newest))))
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"none|no checkpoint that is whole.*step_00000005.*step_00000003"
    ):
        latest(path.parents[1])


def test_format_1_is_refused_with_where_its_weights_are(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    (folder / "state.json").write_text('{"format": 1}')
    with pytest.raises(
        CheckpointError, match=r"format 1, which has no checksums.*weights are in .*model\.safet"
    ):
        checkpoint.load(folder)
    (folder / "manifest.json").write_text('{"format": 99, "digest": ""}')
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        checkpoint.load(folder)


def test_a_pickle_is_refused_without_opening_it(saved: tuple[Trainer, Path], tmp_path: Path) -> None:
    opened = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (opened,))

    file = tmp_path / "epoch_1.pt"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is a file; a checkpoint of this program is a folder"):
        checkpoint.find(RunConfig(resume=str(file)))
    _, path = saved
    for name in FILES[1:]:  # a stranger can make the manifest fit
        hostile = tmp_path / "step_00000001"
        shutil.copytree(path, hostile, dirs_exist_ok=True)
        (hostile / name).write_bytes(file.read_bytes())
        seals = {
            n: manifest.Seal((hostile / n).stat().st_size, manifest._file_digest(hostile / n))
            for n in FILES[1:]
        }
        (hostile / "manifest.json").unlink()
        manifest.write_manifest(hostile, seals, step=1, world_size=1, config={})
        checkpoint.verify(hostile)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(hostile)
    seals = {**seals, "../../elsewhere": seals["state.json"]}
    (hostile / "manifest.json").unlink()
    manifest.write_manifest(hostile, seals, step=1, world_size=1, config={})
    with pytest.raises(CheckpointError, match="no name of a file in it"):
        checkpoint.verify(hostile)
    assert not opened.exists()


def test_find_takes_the_newest_by_number(saved: tuple[Trainer, Path], tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "a" / "checkpoints"
    for name in ("step_00000900", "step_100000000", "step_00001000"):
        shutil.copytree(saved[1], folder / name)
    for name in (".step_200000000.partial", "abandoned_step_300000000", "notes"):
        (folder / name).mkdir()
    newest = folder / "step_100000000"
    assert checkpoint.find(RunConfig(resume="latest", logs=str(tmp_path / "logs"), name="a")) == newest
    assert latest(folder) == newest
    assert latest(folder / "step_00000900").name == "step_00000900"
    with pytest.raises(NoCheckpoint, match="found no checkpoint"):
        checkpoint.find(RunConfig(resume="latest", logs=str(tmp_path / "logs"), name="b"))


def test_a_checkpoint_of_another_model_names_keys_and_shapes(saved: tuple[Trainer, Path]) -> None:
    _, path = saved
    tiny = PRESETS["tiny"]
    wider = CLIP(dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, width=48)))
    before = {key: value.clone() for key, value in wider.state_dict().items()}
    optimizer = build_optimizer(wider, OptimConfig())
    with pytest.raises(CheckpointError, match="made for another model") as caught:
        checkpoint.restore(checkpoint.load(path), wider, optimizer)
    assert "positional_embedding is (77, 16) there, (77, 48) here" in str(caught.value)
    assert "--model" in str(caught.value)
    for key, value in wider.state_dict().items():
        assert torch.equal(value, before[key])

    deeper = CLIP(dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, layers=2)))
    with pytest.raises(CheckpointError, match=r"entries of this model are not in it: .*resblocks\.1"):
        checkpoint.restore(checkpoint.load(path), deeper, build_optimizer(deeper, OptimConfig()))
    pooled = CLIP(dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, pool="mean")))
    with pytest.raises(
        CheckpointError, match=r"1 of its entries are not in this model: visual\.class_embedding"
    ):
        checkpoint.restore(checkpoint.load(path), pooled, build_optimizer(pooled, OptimConfig()))


def test_a_rank_the_saved_run_did_not_have_starts_its_own_random_numbers(
    saved: tuple[Trainer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = saved
    held, draws = checkpoint.load(path), []
    for rank in ("0", "1", "2", "1"):
        monkeypatch.setenv("RANK", rank)
        checkpoint.restore(held, trainer.model, trainer.optimizer)
        draws.append(torch.rand(1).item())
    assert len(set(draws)) == 3 and draws[1] == draws[3]
