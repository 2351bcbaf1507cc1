"""Saving: a checkpoint holds everything, is complete or absent, and what was there before stays until it is."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from fastclip.train import checkpoint
from fastclip.train.__main__ import main
from fastclip.train.checkpoint import CheckpointError, manifest, write
from fastclip.train.checkpoint.tensors import serialise
from fastclip.train.loop import Trainer
from tests.train.checkpoint.conftest import FILES, contents, flip, latest, names, steps


def test_a_checkpoint_holds_the_whole_state(saved: tuple[Trainer, Path]) -> None:
    trainer, path = saved
    assert path.name == "step_00000003"
    assert set(FILES) <= set(names(path))
    held = checkpoint.load(path)
    assert held.state["step"] == 3
    assert (held.state["epoch"], held.state["position"]) == (0, 48)
    assert held.config == trainer.config.to_dict() == checkpoint.read_config(path)
    assert held.model.keys() == trainer.model.state_dict().keys()
    assert held.world_size == 1 and held.ema is None
    for name, _ in trainer.model.named_parameters():
        assert {
            f"optimizer.{name}.{slot}" for slot in ("exp_avg", "exp_avg_sq", "step")
        } <= held.training.keys()
    assert "rng.rank0.torch" in held.training
    written = checkpoint.verify(path)
    assert written["step"] == 3 and written["versions"]["torch"] == torch.__version__


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


def test_averages_counters_and_documents_travel_along(saved: tuple[Trainer, Path]) -> None:
    trainer, path = saved
    ema = {name: value + 1 for name, value in trainer.model.state_dict().items()}
    new = checkpoint.save(
        path.parent, model=trainer.model, optimizer=trainer.optimizer, state={"step": 4, "scaler": {"scale": 0.1}},
        config={}, model_config={}, ema=ema, counters={"skipped: empty": 3}, documents={"run.yaml": "lr: 1\n"},
    )  # fmt: skip
    held = checkpoint.load(new)
    assert held.ema is not None and all(torch.equal(held.ema[name], value) for name, value in ema.items())
    assert held.state == {"step": 4, "scaler": {"scale": 0.1}, "counters": {"skipped: empty": 3}}
    assert (new / "run.yaml").read_text() == "lr: 1\n"
    (new / "run.yaml").write_text("lr: 2\n")
    with pytest.raises(CheckpointError, match=r"run\.yaml is damaged"):
        checkpoint.load(new)


def test_tensors_are_written_as_the_safetensors_library_reads_them() -> None:
    tensors = {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "odd bytes": torch.arange(5, dtype=torch.uint8),
        "brain": torch.randn(3, 2).to(torch.bfloat16),
        "slanted": torch.arange(6).view(2, 3).T,
        "flag": torch.tensor([True, False]),
    }
    read = load(b"".join(serialise(tensors)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    with pytest.raises(TypeError, match=r"z has dtype torch\.complex64"):
        list(serialise({"z": torch.zeros(1, dtype=torch.complex64)}))


# Saving: a failure at any moment leaves the last one.


@pytest.mark.parametrize("moment", ["mkdir", *FILES, "rename"])
def test_a_failure_while_saving_leaves_the_last_checkpoint(
    saved: tuple[Trainer, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    trainer, path = saved
    before = contents(path)
    trainer.train(until=5)
    write_sealed = manifest.write_sealed

    def full_disk(file: Path, chunks: Iterator[bytes]) -> manifest.Seal:
        if file.name != moment:
            return write_sealed(file, chunks)
        file.write_bytes(next(iter(chunks))[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail(self: Path, *rest: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for module in (manifest, write):
        monkeypatch.setattr(module, "write_sealed", full_disk)
    if moment in ("mkdir", "rename"):
        monkeypatch.setattr(Path, moment, fail)
    with pytest.raises(OSError):
        trainer.save()
    assert names(path.parent) == ["step_00000003"]
    assert contents(path) == before
    assert latest(path.parents[1]) == path

    monkeypatch.undo()
    trainer.save()
    assert steps(path.parent) == [3, 5]


def test_a_disk_that_gives_back_other_bytes_is_noticed_before_old_checkpoints_go(
    saved: tuple[Trainer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = saved
    write_sealed = manifest.write_sealed

    def lossy(file: Path, chunks: Iterator[bytes]) -> manifest.Seal:
        seal = write_sealed(file, chunks)
        if file.name == "model.safetensors":
            flip(file, 1000)
        return seal

    monkeypatch.setattr(write, "write_sealed", lossy)
    trainer.train(until=5)
    with pytest.raises(OSError, match=r"read back, the checkpoint is not what was written"):
        trainer.save()
    assert names(path.parent) == ["step_00000003"]


def test_a_run_goes_on_without_a_checkpoint_in_the_middle_and_fails_without_the_last(
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = make_trainer(tmp_path / "run", steps=6, save_every_n_steps=2)
    monkeypatch.setattr(os, "fsync", lambda descriptor: full() if trainer.step >= 4 else None)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert trainer.step == 6
    assert "no checkpoint of step 4" in caplog.text and "No space left" in caplog.text
    assert steps(tmp_path / "run" / "checkpoints") == [2]
    checkpoint.verify(tmp_path / "run" / "checkpoints" / "step_00000002")


def test_what_a_killed_process_left_behind_is_no_checkpoint_and_is_cleared(
    saved: tuple[Trainer, Path],
) -> None:
    trainer, path = saved
    for leftover in (".step_00000004.partial", ".step_00000001.removed"):
        (path.parent / leftover).mkdir()
        (path.parent / leftover / "model.safetensors").write_bytes(b"half")
    assert latest(path.parent) == path
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


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(saved: tuple[Trainer, Path]) -> None:
    trainer, path = saved
    path.rename(path.with_name(".step_00000003.replaced"))
    found = latest(path.parents[1])
    assert found.name == ".step_00000003.replaced" and checkpoint.load(found).state["step"] == 3
    trainer.save()
    assert names(path.parent) == ["step_00000003"]


def test_only_the_newest_are_kept(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", save_every_n_steps=1, keep_checkpoints=2)
    trainer.train(until=5)
    assert names(tmp_path / "run" / "checkpoints") == ["step_00000004", "step_00000005"]
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        checkpoint.save(tmp_path, model=trainer.model, optimizer=trainer.optimizer, state={"step": 1}, config={},
                        model_config={}, keep=1)  # fmt: skip


def test_a_run_resumed_from_an_earlier_step_puts_the_later_ones_aside(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    make_trainer(tmp_path / "run", save_every_n_steps=1, keep_checkpoints=5).train(until=5)
    back = make_trainer(tmp_path / "run", save_every_n_steps=1, keep_checkpoints=5, lr=1e-4)
    back.resume(checkpoint.load(folder / "step_00000002"))
    back.train(until=3)
    assert names(folder) == [
        "abandoned_step_00000004", "abandoned_step_00000005", "step_00000001", "step_00000002", "step_00000003"
    ]  # fmt: skip
    assert latest(tmp_path / "run").name == "step_00000003"


def test_minutes_bring_a_checkpoint_inside_an_epoch(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path / "run", save_every_minutes=1e-9)
    trainer.train(until=3)  # what is due is saved before the next step
    assert steps(tmp_path / "run" / "checkpoints") == [1, 2]
    later = make_trainer(tmp_path / "later", save_every_minutes=60)
    later.train(until=2)
    assert not (tmp_path / "later" / "checkpoints").exists()


@pytest.mark.parametrize("trouble", ["a full disk", "a file in the way"])
def test_the_program_fails_if_its_last_checkpoint_cannot_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    flags = ["--train-data", str(tmp_path / "pictures"), "--model", "tiny", "--batch-size", "2", "--steps", "3",
             "--device", "cpu", "--logs", str(tmp_path), "--name", "a", "--workers", "0", "--no-pictures",
             "--save-every-n-steps", "1"]  # fmt: skip
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"red {i}")
    if trouble == "a file in the way":
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "checkpoints").write_text("")
        flags += ["--resume", "latest"]
        assert main(flags) == 1
    else:  # what a process may not write is what a disk has no room for
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            assert main(flags) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no checkpoint of step 1" in caplog.text and "earlier ones are intact" in caplog.text
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
