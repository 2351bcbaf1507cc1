"""The benchmarks of training steps: both trainers train the same, and what is for GPUs runs (here on a CPU)."""

from __future__ import annotations

import pytest

from benchmarks import throughput, training
from benchmarks.training import Case


def test_the_part_for_gpus_runs_a_whole_step() -> None:
    row = throughput.throughput("demo", 8, 4, "cpu", steps=1)
    assert row["pictures_per_second"] == pytest.approx(8 / row["step_seconds"])
    assert 0 < row["loss_share"] < 1
    shown = throughput.table([{"model": "demo", "batch": 8, "micro_batch": 4, "memory": 2**30, **row},
                       {"model": "demo", "batch": 9, "micro_batch": None, "failure": "out of memory"}])  # fmt: skip
    assert "1.00 GiB" in shown and "| 9 | – | out of memory" in shown


def test_a_failure_has_a_row() -> None:
    row = {
        "model": "small",
        "batch": 4,
        "captions": "full",
        "precision": "fp32",
        "failure": "not the same training",
    }
    assert "| small | 4 | full | fp32 | not the same training |" in training.table([row])


@pytest.mark.slow
@pytest.mark.skipif(not training.OPEN_CLIP.is_file(), reason="`make openclip` prepares it")
@pytest.mark.parametrize("captions", ["scenes", "full"])
def test_both_trainers_train_the_same(captions: str) -> None:
    """Three steps from the same weights, within the benchmark itself, end at the same loss."""
    row = training._in_open_clips_environment(Case("small", 4, captions), seconds=0.0, threads=1)
    assert "failure" not in row, row["failure"]
    assert row["losses_apart"] < 1e-3 and row["speedup"] > 0
