"""Under torchrun, as users start it: a rank that is killed, a restart, and a stop from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastclip.train import checkpoint, metrics
from fastclip.train.config import RunConfig

ROOT = Path(__file__).parents[2]
FLAGS = ["--train-data", "shapes", "--model", "tiny", "--batch-size", "8", "--device", "cpu", "--lr", "3e-3",
         "--val-frequency", "0", "--no-pictures", "--workers", "1", "--log-every-n-steps", "1"]  # fmt: skip

pytestmark = pytest.mark.slow


def torchrun(logs: Path, *more: str, ranks: int = 2, restarts: int = 0, accident: str | None = None):  # type: ignore[no-untyped-def]
    """Start the program on so many ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, f"--max-restarts={restarts}", "--", "tests/train/launched.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if accident is not None:
        environment["ACCIDENT"] = accident
    return subprocess.Popen([*command, *FLAGS, "--logs", str(logs), *more], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def newest(run: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.find(RunConfig(resume=str(run))))


def test_torchrun_restarts_from_the_last_checkpoint(tmp_path: Path) -> None:
    """Rank 1 is killed in step 6; the last checkpoint is of step 4; the end is that of a run without accident."""
    flags = ["--steps", "8", "--save-every-n-steps", "4"]
    process = torchrun(tmp_path, "--name", "hit", *flags, restarts=1, accident="1 6")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "restart 1 of hit, from step_00000004" in said
    process = torchrun(tmp_path, "--name", "whole", *flags)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hit", "whole"]
    hit, whole = newest(tmp_path / "hit"), newest(tmp_path / "whole")
    assert hit.world_size == 2
    assert all(torch.equal(value, whole.model[key]) for key, value in hit.model.items())
    curves = [
        [
            (line["step"], line["train/loss"])
            for line in metrics.read(run / "metrics.jsonl")
            if "train/loss" in line
        ]
        for run in (tmp_path / "hit", tmp_path / "whole")
    ]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == list(range(1, 9))


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "--name", "hit", "--steps", "8", ranks=3, accident="1 3")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in said


def test_stopped_from_outside_all_ranks_save_the_same_step(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "--name", "long", "--steps", "100000")
    log, deadline = tmp_path / "long" / "metrics.jsonl", time.monotonic() + 120
    while len(metrics.read(log)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert "all is saved; --resume continues" in said
    step = newest(tmp_path / "long").state["step"]
    assert step >= 3
    process = torchrun(
        tmp_path,
        "--name",
        "long",
        "--resume",
        "latest",
        "--steps",
        str(step + 2),
        "--batch-size",
        "4",
        ranks=4,
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert newest(tmp_path / "long").state["step"] == step + 2
