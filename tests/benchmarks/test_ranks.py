"""The commands that measure ranks and large batches, at sizes where little takes long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import largebatch, scaling, wire


@pytest.mark.slow
def test_sharded_measures_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-n", "64", "-d", "32", "--ranks", "1", "2", "--turns", "1", "--output", str(tmp_path)]
    assert program.main(["sharded", *arguments]) == 0
    assert "fastclip ring" in capsys.readouterr().out
    rows = json.loads((tmp_path / "sharded-cpu.json").read_text())["rows"]
    measured = {(row["contender"], row["ranks"]): row for row in rows if row["failure"] is None}
    assert {("fastclip gather", 1), ("fastclip gather", 2), ("fastclip ring", 2)} <= set(measured)
    row = measured["fastclip ring", 2]
    assert row["flops"] == 8 and row["seconds"] > 0 and row["cpu_seconds"] > 0
    if row["received"] is not None:
        assert row["formula"] <= row["received"] < row["formula"] + 8000


@pytest.mark.slow
def test_largebatch_measures_both_kinds_of_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largebatch, "PROBE", 16)
    assert program.main(["largebatch", "-n", "32", "--micro", "8", "--output", str(tmp_path)]) == 0
    assert "micro-batches" in capsys.readouterr().out
    rows = json.loads((tmp_path / "largebatch-cpu.json").read_text())["rows"]
    assert [(row["pairs"], row["micro_batch"]) for row in rows] == [(32, 8), (32, None)]
    assert all(row["seconds"] > 0 for row in rows)


def test_what_does_not_fit_is_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(pairs: int, micro: int | None, preset: str) -> largebatch.Row:
        return largebatch.Row(pairs, micro, 1.0, 2**20 if micro else pairs * 2**20)

    monkeypatch.setattr(largebatch, "measured", measured)
    monkeypatch.setattr(largebatch, "available_memory", lambda: 2**30)
    assert program.main(["largebatch", "-n", "512", "4096", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "largebatch-cpu.json").read_text())["rows"]
    plain = [(row["memory"], row["failure"] is None) for row in rows if row["micro_batch"] is None]
    assert plain == [(2**29, True), (2**32, False)]


def test_uneven_ranks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["sharded", "-n", "64", "--ranks", "3"])
    assert "cannot be shared evenly by 3 ranks" in capsys.readouterr().err


def test_scaling_takes_another_device_and_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rate", "100", "--inside", "10", "--across", "1", "--per-node", "4", "--memory", "8"]
    assert program.main(["scaling", *options, "-n", "65536", "--ranks", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["device"]["forward_rate"] == 1e14 and answer["network"]["per_node"] == 4
    (row,) = answer["rows"]
    assert row["gather"]["products"] == pytest.approx(8 * 65536**2 * 1024 / 4 / 1e14)
    document = tmp_path / "document.md"
    document.write_text(f"before\n{scaling.START}\nold\n{scaling.END}\nafter\n")
    assert program.main(["scaling", "-n", "65536", "--ranks", "8", "--write", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "65,536" in text and "old" not in text
    document.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        scaling.write(document, "table")


def test_the_wire_is_counted_or_unknown() -> None:
    counted = wire.received()
    assert counted is None or counted >= 0
