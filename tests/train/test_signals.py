"""SIGTERM and SIGINT: the step is finished, all is saved, the exit code says so; a second signal ends at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastclip.train import checkpoint, metrics
from fastclip.train.__main__ import main
from fastclip.train.config import RunConfig
from fastclip.train.exams import Exams
from fastclip.train.signals import Stopped, StopSignals
from fastclip.train.step import Step


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Return the flags of a run of ten steps."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(24):
        Image.new("RGB", (16, 16), (10 * i, 200, 0)).save(pictures / f"{i:02}.png")
        (pictures / f"{i:02}.txt").write_text(f"picture number {i}")
    return ["--train-data", str(pictures), "--model", "tiny", "--batch-size", "8", "--device", "cpu", "--steps", "10",
            "--logs", str(tmp_path / "logs"), "--no-pictures", "--val-frequency", "0", "--workers", "0"]  # fmt: skip


def raise_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of a step, counted from 1."""
    take, taken = Step.__call__, []

    def call(self: Step, *rest: object) -> object:
        taken.append(None)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        return take(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Step, "__call__", call)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_has_saved_its_step_and_continues(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    assert main([*flags, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        raise_at(patch, 4, number)
        assert main([*flags, "--name", "stopped"]) == 128 + number
    assert f"stopped by {signal.Signals(number).name} after step 4: all is saved" in capsys.readouterr().err
    assert signal.getsignal(number) is not None and not isinstance(signal.getsignal(number), StopSignals)
    assert main([*flags, "--name", "stopped", "--resume", "latest"]) == 0
    whole, stopped = (
        checkpoint.load(checkpoint.find(RunConfig(resume=str(tmp_path / "logs" / name))))
        for name in ("whole", "stopped")
    )
    assert whole.state["step"] == stopped.state["step"] == 10
    assert all(torch.equal(value, stopped.model[key]) for key, value in whole.model.items())


def test_a_signal_in_the_last_step_ends_the_run_after_its_checkpoint(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_at(monkeypatch, 10, signal.SIGTERM)
    assert main([*flags, "--name", "late"]) == 143
    assert checkpoint.find(RunConfig(resume=str(tmp_path / "logs" / "late"))).name == "step_00000010"


def test_a_signal_in_an_exam_ends_the_run_before_the_exams_end(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no save is due; the exam is sat when the run goes on, as far as it was not."""
    flags = [*flags, "--val-frequency", "1", "--save-frequency", "0"]
    assert main([*flags, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        encode, encoded = Exams.images, []

        def images(self: Exams, pictures: torch.Tensor) -> torch.Tensor:
            encoded.append(len(pictures))
            os.kill(os.getpid(), signal.SIGTERM)
            return encode(self, pictures)

        patch.setattr(Exams, "images", images)
        assert main([*flags, "--name", "cut"]) == 143
    assert len(encoded) == 1 and "stopped by SIGTERM after step 2: all is saved" in capsys.readouterr().err
    assert main([*flags, "--name", "cut", "--resume", "latest"]) == 0
    lines = [metrics.read(tmp_path / "logs" / run / "metrics.jsonl") for run in ("whole", "cut")]
    figures = [[line for line in run if "train/loss" not in line] for run in lines]
    assert figures[0] == figures[1] and len(figures[0]) > 2


def test_where_nothing_is_to_be_saved_a_signal_ends_the_program_where_it_stands() -> None:
    with StopSignals().caught(), pytest.raises(Stopped, match="stopped by SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def ending(act: Callable[[], None], *signals: tuple[float, int]) -> int:
    """Return how a forked process ends that does something patiently, and gets signals after so many seconds each."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with StopSignals().caught() as stop, stop.patient():
            os.write(tell, b"x")
            act()
            os._exit(7)
    os.read(ready, 1)
    for seconds, number in signals:
        time.sleep(seconds)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_nobody() -> None:
    """Wait outside of Python, as a collective does for a rank that does not come."""
    torch.distributed.HashStore().wait(["never"], timedelta(seconds=20))


@pytest.mark.parametrize("act", [lambda: time.sleep(20), wait_for_nobody], ids=["python", "a collective"])
def test_a_second_signal_ends_the_process_at_once(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]
) -> None:
    monkeypatch.setattr("fastclip.train.signals._SAME", 0.1)
    started = time.monotonic()
    assert ending(act, (0.0, signal.SIGINT), (0.3, signal.SIGTERM)) == 143
    assert time.monotonic() - started < 10


def test_a_signal_that_a_launcher_passes_on_is_the_same_one() -> None:
    assert ending(lambda: time.sleep(0.5), (0.0, signal.SIGINT), (0.1, signal.SIGINT)) == 7
