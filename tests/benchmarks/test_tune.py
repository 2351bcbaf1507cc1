"""The tuner's search, with a timer that knows the answer, and the table that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import tune
from benchmarks.tune import Refused, search, updated, written

pytest.importorskip("triton")

from fastclip.backends.triton import plan
from fastclip.backends.triton.plan import Tile

START = Tile(128, 256, 64, 8, 4, 8, 1)


class Clock:
    """A fake timer: seconds from a tile, and which tiles were asked about."""

    def __init__(self, seconds: object) -> None:
        self.seconds, self.asked = seconds, []  # type: ignore[var-annotated]

    def __call__(self, tile: Tile) -> float:
        self.asked.append(tile)
        return self.seconds(tile)  # type: ignore[operator]


def distance(goal: Tile) -> object:
    return lambda tile: 1.0 + sum(abs(a - b) for a, b in zip(tile, goal, strict=True)) / 1000


def test_search_finds_what_is_fastest() -> None:
    goal = Tile(128, 128, 64, 8, 3, 12, 2)
    clock = Clock(distance(goal))
    assert search(START, clock) == (goal, 1.0)
    assert len(clock.asked) == len(set(clock.asked)) < 60


def test_search_goes_around_again_for_what_depends_on_a_later_choice() -> None:
    # Small tiles pay only where two programs share an SM.
    def seconds(tile: Tile) -> float:
        if tile.block_n == 128:
            return 1.0 if tile.resident == 2 else 3.0
        return 1.9 if tile.resident == 2 else 2.0

    best, time = search(START, Clock(seconds))
    assert (best.block_n, best.resident, time) == (128, 2, 1.0)
    assert search(START, Clock(seconds), rounds=1)[1] == 1.9


def test_search_passes_over_what_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(tile: Tile) -> float:
        if tile.stages > 3:
            raise Refused("out of shared memory")
        return 1.0 / tile.stages

    best, _ = search(START, Clock(seconds))
    assert best.stages == 3
    assert "passed over (128, 256, 64, 8, 4, 8, 1): out of shared memory" in capsys.readouterr().err

    def never(tile: Tile) -> float:
        raise Refused("no such GPU")

    with pytest.raises(Refused, match="no tile near"):
        search(START, never)


def test_every_choice_makes_a_tile() -> None:
    for axis in tune.AXES:
        for choice in axis:
            tile = START._replace(**choice)
            assert tile.block_m <= tile.block_n and tile.block_n % 64 == 0 and 64 % tile.block_d == 0


def entry(capability: str, kernel: str, width: int, group: int, **more: object) -> dict:
    tile = [128, 128, 64, 8, 3, group, 1]
    return {
        "capability": capability,
        "kernel": kernel,
        "variant": "half",
        "width": width,
        "tile": tile,
        **more,
    }


def test_the_table_keeps_what_was_not_tuned() -> None:
    table = {
        "made_by": {"hand": {}, "old": {"date": "2026-01-01"}},
        "tiles": [
            entry("8.0", "statistics", 512, 8, by="hand"),
            entry("9.0", "statistics", 512, 8, by="old"),
        ],
    }
    found = [entry("9.0", "statistics", 512, 16, ms=1.5), entry("9.0", "statistics", 1024, 4, ms=3.0)]
    new = updated(table, found, "H100", {"device": "H100", "date": "2026-11-24"})
    assert list(new["made_by"]) == ["hand", "H100"]  # nothing is left of the old
    assert [(e["capability"], e["width"], e["tile"][5], e["by"]) for e in new["tiles"]] == [
        ("8.0", 512, 8, "hand"),
        ("9.0", 512, 16, "H100"),
        ("9.0", 1024, 4, "H100"),
    ]
    text = written(new)
    assert json.loads(text) == new
    assert sum('"kernel"' in line for line in text.splitlines()) == 3  # an entry a line


def test_the_backends_table_says_who_made_it() -> None:
    text = plan.TABLE.read_text()
    table = json.loads(text)
    assert written(table) == text
    for each in table["tiles"]:
        assert each["by"] in table["made_by"]
        tile = Tile(*each["tile"])
        assert tile.block_m <= tile.block_n


def test_a_tile_is_used_by_its_kernel_alone() -> None:
    odd = START._replace(group=5)
    with tune.using("statistics", odd):
        assert plan.tile_for((9, 0), "statistics", "half", 512) == odd
        assert plan.tile_for((9, 0), "coefficients", "half", 512) != odd
    assert plan.tile_for((9, 0), "statistics", "half", 512) != odd


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiles.json"
    assert program.main(["tune", "--output", str(path)]) == 2
    assert not path.exists()
    assert "tuning times kernels on a GPU" in capsys.readouterr().err


def test_a_tile_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = object.__new__(tune.Bench)
    bench.kernel, bench.device, bench.first = "statistics", "cpu", None
    bench.problem = type("Problem", (), {"x": type("X", (), {"width": 64})})  # type: ignore[assignment]
    results = iter([torch.ones(3), torch.ones(3) * 1.0001, torch.tensor([1.0, 1.0, 1.1])])
    monkeypatch.setattr(bench, "run", lambda: next(results), raising=False)
    monkeypatch.setattr(tune, "_median_seconds", lambda run, device: 2.0)
    assert bench.seconds(START) == bench.seconds(START._replace(group=4)) == 2.0
    with pytest.raises(Refused, match="something else"):
        bench.seconds(START._replace(group=12))
    with pytest.raises(Refused, match="does not divide"):
        bench.seconds(START._replace(block_d=128))


@pytest.mark.skipif(not plan.INTERPRETED, reason="Triton was imported without TRITON_INTERPRET=1")
@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_what_is_timed_is_the_launchers_own_pass(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_median_seconds", lambda run, device: 0.5)
    bench = tune.Bench(kernel, "half", 64, device="cpu", n=40)
    assert bench.seconds(START) == 0.5
    assert bench.first is not None and bench.first.isfinite().all()
    assert bench.first.numel() == (80 if kernel == "statistics" else 40)
