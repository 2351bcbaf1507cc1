"""`--dry-run`: says what a run will be, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastclip.train.__main__ import main
from fastclip.train.forecast import clock


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
    assert float(re.search(r"first two steps: ([\d.]+), ", printed)[1]) > 0  # type: ignore[index]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_finds_wrong_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train-data", "/nowhere", "--dry-run"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 seconds"), (90, "1.5 minutes"), (5400, "1.5 hours"), (2.16e5, "2.5 days")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
