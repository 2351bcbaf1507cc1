"""`--dry-run`: says what a run will be, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastclip.train import metrics
from fastclip.train.__main__ import main
from fastclip.train.forecast import clock
from tests.train.painted import paint


def test_a_dry_run_forecasts_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "--train-data",
        "shapes",
        "--model",
        "tiny",
        "--batch-size",
        "16",
        "--device",
        "cpu",
        "--epochs",
        "3",
    ]
    assert main([*flags, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "data: shapes" in printed and "model: tiny" in printed
    steps = int(re.search(r"forecast: ([\d,]+) steps", printed)[1].replace(",", ""))  # type: ignore[index]
    assert steps == 3 * (16_384 // 16)
    assert float(re.search(r"loss of two steps: ([\d.]+), ", printed)[1]) > 0  # type: ignore[index]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_knows_a_checkpoints_size_and_where_a_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the real thing: a checkpoint with the moving average in it, and the losses of the steps to come."""
    pictures = paint(tmp_path / "pictures", 24, lambda colour, i: f"a {colour} picture, number {i}")
    flags = ["--train-data", str(pictures), "--model", "tiny", "--batch-size", "8", "--device", "cpu", "--steps", "7",
             "--ema", "0.9", "--save-every-n-steps", "3", "--keep-checkpoints", "9", "--log-every-n-steps", "1",
             "--val-frequency", "0", "--no-pictures", "--logs", str(tmp_path / "logs"), "--name", "a"]  # fmt: skip
    assert main([*flags, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "resumes" not in printed and "forecast: 7 steps in about" in printed
    assert not (tmp_path / "logs").exists()
    assert main(flags) == 0
    run = tmp_path / "logs" / "a"
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "step_00000003").iterdir())
    said = re.search(r"a checkpoint takes ([\d,]+) MiB on disk, and 9 are kept", printed)
    assert said is not None and float(said[1]) == pytest.approx(size / 2**20, abs=0.6)

    losses = {x["step"]: x["train/loss"] for x in metrics.read(run / "metrics.jsonl") if "train/loss" in x}
    files = sorted(run.rglob("*"))
    capsys.readouterr()
    saved = run / "checkpoints" / "step_00000003"
    assert main(["--resume", str(saved), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"resumes from {saved}: 3 of 7 steps are done, 4 remain" in printed
    assert f"loss of two steps: {losses[4]:.4f}, {losses[5]:.4f} nats" in printed
    assert "forecast: 4 steps in about" in printed
    assert main(["--resume", "latest", "--name", "a", "--logs", str(tmp_path / "logs"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "7 of 7 steps are done, 0 remain" in printed and "forecast: nothing is left to do" in printed
    assert sorted(run.rglob("*")) == files


def test_a_dry_run_finds_wrong_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train-data", "/nowhere", "--dry-run"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 seconds"), (90, "1.5 minutes"), (5400, "1.5 hours"), (2.16e5, "2.5 days")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
