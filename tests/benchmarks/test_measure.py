"""Time in turns and memory by the resident set, on steps whose cost is known."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Timing, extra_memory, in_turns, matmul

MIB = 2**20


def test_a_slower_step_takes_longer() -> None:
    steps = {"fast": lambda i: time.sleep(0.004), "slow": lambda i: time.sleep(0.02)}
    timings = in_turns(steps, seconds=0.2)
    assert timings["slow"].over(timings["fast"]) > 2
    assert timings["fast"].median >= 0.004


def test_contenders_take_turns_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setitem(measure.SHORTEST_TURN, "cpu", 0.0)
    timings = in_turns(
        {"a": lambda i: called.append("a"), "b": lambda i: called.append("b")}, seconds=0, least=3
    )
    assert called == [*"aabb", *"ab", *"ba", *"ab"]
    assert {len(timing.seconds) for timing in timings.values()} == {3}


def test_short_steps_are_repeated_and_see_every_number_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setitem(measure.SHORTEST_TURN, "cpu", 0.005)
    in_turns({"short": seen.append}, seconds=0, least=3)
    assert len(seen) > 10
    assert seen == list(range(len(seen)))


def test_a_failing_step_says_why_and_leaves_the_others_alone() -> None:
    def fail(i: int) -> None:
        raise RuntimeError("no such instruction\nmore lines")

    timings = in_turns({"broken": fail, "sound": lambda i: time.sleep(0.001)}, seconds=0)
    assert timings["broken"] == Timing([], "RuntimeError: no such instruction")
    assert len(timings["sound"].seconds) == 3


def test_a_ratio_is_taken_within_turns() -> None:
    # The machine slows down tenfold on the way; the ratio of 2 stays.
    assert Timing([2.0, 4.0, 20.0]).over(Timing([1.0, 2.0, 10.0])) == 2.0
    assert Timing([1.0, 1.0, 1.0]).spread == 0.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident set is read from /proc")
def test_memory_is_what_is_touched() -> None:
    def touch() -> None:
        torch.zeros(64 * MIB, dtype=torch.uint8).fill_(1)

    def reserve() -> None:
        torch.empty(256 * MIB, dtype=torch.uint8)

    touched, reserved = extra_memory(touch), extra_memory(reserve)
    assert touched is not None and 62 * MIB < touched < 80 * MIB
    assert reserved is not None and reserved < 16 * MIB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matmul_counts_its_operations(dtype: torch.dtype) -> None:
    alone = matmul(64, 16, dtype)
    alone.step(0)
    assert alone.flops == 8 * 64**2 * 16
