"""The comparison of drop-ins, at a size where nothing takes long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import dropins
from benchmarks.contenders import Unavailable


def test_a_dropin_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.setattr(dropins, "_memory", lambda dropin, side, n, d: 2**20 * (1 + (side == "theirs")))
    options = ["-n", "256", "-d", "8", "--seconds", "0", "--only", "metric", "--output", str(tmp_path)]
    assert program.main(["dropins", *options]) == 0
    assert "| pytorch-metric-learning NTXentLoss | 8 | 8 | " in capsys.readouterr().out
    document = json.loads((tmp_path / "dropins-cpu.json").read_text())
    assert document["command"] == "python -m benchmarks dropins -n 256 -d 8"
    (row,) = document["rows"]
    assert row["theirs_memory"] == 2 * row["ours_memory"] == 2**21
    assert row["speedup"] > 0 and row["ours_seconds"] > 0


def test_what_is_not_installed_is_a_row() -> None:
    def prepare(side: str, n: int, d: int) -> dropins.Step:
        raise Unavailable("not installed: pip install nonesuch")

    row = dropins.measure_dropin(dropins.DropIn("nonesuch Loss", prepare), 8, 8, seconds=0)
    assert row["failure"] == "not installed: pip install nonesuch"
    assert "| nonesuch Loss | 8 | 8 | not installed: pip install nonesuch |" in dropins.table([row])


@pytest.mark.slow
@pytest.mark.parametrize("dropin", dropins.DROPINS, ids=lambda dropin: dropin.name)
def test_both_sides_of_every_dropin_run(dropin: dropins.DropIn) -> None:
    for side in dropins.SIDES:
        try:
            dropin.prepare(side, 16, dropin.width or 32)()
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.mark.slow
def test_what_fails_is_a_row() -> None:
    broken = dropins.DropIn("nonesuch Loss", lambda side, n, d: lambda: None)  # unknown to the other process
    row = dropins.measure_dropin(broken, 8, 8, seconds=0)
    assert row["failure"].startswith("theirs failed: StopIteration")


@pytest.mark.slow
def test_memory_is_measured_in_another_process() -> None:
    dropin = next(d for d in dropins.DROPINS if "Ranking" in d.name)
    pytest.importorskip("sentence_transformers")
    theirs, ours = (dropins._memory(dropin, side, 1500, 16) for side in dropins.SIDES)
    assert theirs is None or theirs > ours > 0


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["dropins", "--only", "nonesuch"])
    assert "there are open_clip ClipLoss" in capsys.readouterr().err
