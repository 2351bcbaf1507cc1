"""JSON lines that any reader takes, and consoles for people and for files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from fastclip.train import metrics
from fastclip.train.metrics import Console, Meter, MetricLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.write(1, 0.5, {"train/loss": 2.5})
    log.write(2, 1.0, {"train/loss": float("nan"), "train/scale": float("inf")})
    lines = [json.loads(text, parse_constant=lambda name: 1 / 0) for text in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "epoch": 0.5, "train/loss": 2.5},
        {"step": 2, "epoch": 1.0, "train/loss": None, "train/scale": None},
    ]


def test_a_new_run_starts_an_empty_file_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    for step in (1, 2, 3):
        log.write(step, 0, {"x": step})
    MetricLog(path, resume_step=2).write(3, 0, {"x": 30})
    assert [line["x"] for line in metrics.read(path)] == [1, 2, 30]
    MetricLog(path)
    assert metrics.read(path) == []


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x"')
    assert metrics.read(path) == [{"step": 1, "x": 1}]
    MetricLog(path, resume_step=1)
    assert path.read_text() == '{"step": 1, "x": 1}\n'
    assert metrics.read(tmp_path / "none.jsonl") == []


def test_a_full_disk_costs_lines_and_one_warning_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.write(1, 0, {"x": 1})

    def full(self: Path, mode: str) -> None:
        with open(self, mode) as file:
            file.write('{"step": 2')
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        log.write(2, 0, {"x": 2})
        log.write(3, 0, {"x": 3})
    log.write(4, 0, {"x": 4})
    assert [line["x"] for line in metrics.read(path)] == [1, 4]
    assert caplog.text.count("takes no more lines (No space left on device)") == 1


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    console = Console(3, stream=stream)
    console.advance(loss="1")
    console.line("hello", bar_says_it=True)
    console.close()
    assert stream.getvalue() == "hello\n"


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    console = Console(3, start=1, label="train", stream=stream)
    console.advance(loss="2.50")
    console.line("said by the bar", bar_says_it=True)
    console.line("news")
    console.close()
    shown = stream.getvalue()
    assert "2/3" in shown and "loss=2.50" in shown and "news\n" in shown
    assert "said by the bar" not in shown


def test_quiet_is_quiet() -> None:
    stream = Terminal()
    console = Console(3, stream=stream, quiet=True)
    console.advance(loss="1")
    console.line("hello")
    console.close()
    assert stream.getvalue() == ""


def test_the_meter_averages_over_steps() -> None:
    meter = Meter()
    meter.waited(0.5)
    meter.count(10)
    meter.waited(1.5)
    meter.count(20)
    figures = meter.flush()
    assert figures["train/data_time"] == 1.0
    assert figures["train/samples_per_second"] * figures["train/batch_time"] * 2 > 29.9
    assert figures["train/samples_per_second"] == figures["train/samples_per_second_per_gpu"]
    assert 50 < figures["train/memory_mib"] < 1e6
    meter.count(1)
    assert meter.flush()["train/data_time"] == 0.0
    shared = Meter(world_size=4)
    shared.count(8)
    rates = shared.flush()
    assert rates["train/samples_per_second"] == 4 * rates["train/samples_per_second_per_gpu"]
