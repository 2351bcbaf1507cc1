"""`python -m fastclip.report`: the report of a finished run comes back, and one in the middle of a run can be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastclip.report import main
from fastclip.train.__main__ import main as train
from fastclip.train.report import Summary


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Train on 40 squares of one colour each; return the run's folder."""
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 255 - 6 * i, 128)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"colour {i}")
    flags = ["--train-data", str(tmp_path / "pictures"), "--model", "demo", "--batch-size", "8", "--epochs", "2",
             "--device", "cpu", "--logs", str(tmp_path), "--name", "run", "--no-pictures", "--log-every-n-steps", "1",
             "--workers", "0", "--control-steps", "1"]  # fmt: skip
    assert train(flags) == 0
    return tmp_path / "run"


def test_the_report_of_a_run_can_be_had_at_any_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, known = (run / "report.html").read_text(), Summary.from_json((run / "results.json").read_text())
    (run / "report.html").unlink()
    assert main([str(run), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "report.html")
    again = Summary.from_json((run / "results.json").read_text())
    assert again.results == known.results and again.control == known.control and again.facts == known.facts
    assert (run / "report.html").read_text().count("<img") == first.count("<img") > 5

    # Of a run that still goes on there are no results yet, and its newest checkpoint may be of an earlier step.
    newest = sorted((run / "checkpoints").iterdir())[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    (run / "results.json").unlink()
    assert main([str(run), "--device", "cpu"]) == 0
    text = (run / "report.html").read_text()
    assert (
        "demo, 4 steps" in text and "measured at checkpoint step_00000004" in text and "Control (" not in text
    )


def test_no_run_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "is no folder of a run: it has no config.json" in capsys.readouterr().err
