"""kill -9 at any moment, in the middle of saving too: the resumed run ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastclip.train import checkpoint, metrics
from tests.train.painted import paint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Return the flags of a run over 46 pictures, three steps and an exam an epoch, saved after every step."""
    pictures = paint(tmp_path / "pictures", 48, lambda colour, i: f"a {colour} picture, number {i // 4}\n")
    return ["--train-data", str(pictures), "--model", "tiny", "--batch-size", "12", "--lr", "3e-3", "--device", "cpu",
            "--log-every-n-steps", "1", "--save-every-n-steps", "1", "--val-frequency", "1",
            "--workers", "1", "--grad-clip-norm", "1", "--no-pictures"]  # fmt: skip


def disturb(logs: Path, flags: list[str], kills: list[dict[str, Any]], ranks: int = 1) -> int:
    """Run the program with kills and without; check that both end alike. Return how many kills struck."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killable", str(logs), json.dumps({"killed": kills, "whole": []}), *flags],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "RANKS": str(ranks)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends["killed"][-1] == ends["whole"][-1] == ["0"] * ranks, done.stderr
    assert_same_run(logs / "killed", logs / "whole")
    return sum("killed" in end for end in ends["killed"])


def assert_same_run(disturbed: Path, undisturbed: Path) -> None:
    """Compare the last checkpoints bit by bit, and losses and figures of exams on the way."""
    newest = [sorted((folder / "checkpoints").glob("step_*"))[-1] for folder in (disturbed, undisturbed)]
    assert newest[0].name == newest[1].name
    for path in newest:
        checkpoint.verify(path)
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (load_file(path / name) for path in newest)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    losses = [
        [
            (line["step"], line["train/loss"])
            for line in metrics.read(folder / "metrics.jsonl")
            if "train/loss" in line
        ]
        for folder in (disturbed, undisturbed)
    ]
    assert losses[0] == losses[1] and len(losses[0]) > 1
    exams = [
        [line for line in metrics.read(folder / "metrics.jsonl") if "val/image_to_text_R@1" in line]
        for folder in (disturbed, undisturbed)
    ]
    assert exams[0] == exams[1] and len(exams[0]) > 1
    assert not [path for path in (disturbed / "checkpoints").iterdir() if path.name.startswith(".")]


def test_killed_in_the_middle_of_saving(tmp_path: Path, flags: list[str]) -> None:
    """Start after start dies a few file operations later: while files are written, renamed, removed."""
    kills = [{"operation": k} for k in (1, 5, 8, 11, 14, 17, 20)]
    assert disturb(tmp_path, [*flags, "--epochs", "2"], kills) >= 6


@pytest.mark.slow
def test_killed_before_every_single_operation_of_a_save(tmp_path: Path, flags: list[str]) -> None:
    kills = [{"operation": k} for k in range(1, 31)]
    assert disturb(tmp_path, [*flags, "--epochs", "7"], kills) == len(kills)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_20_random_moments(tmp_path: Path, flags: list[str], ranks: int) -> None:
    choose = random.Random(ranks)
    kills: list[dict[str, Any]] = [
        {"operation": choose.randrange(1, 40), "seconds": choose.uniform(0, 0.03)} for _ in range(20)
    ]
    if ranks > 1:  # rank 0 dies while it saves; rank 1 at any moment, in the middle of a collective
        for kill in kills[::2]:
            del kill["operation"]
            kill |= {"checkpoint": choose.randrange(2), "seconds": choose.uniform(0, 0.2), "ranks": [1]}
    # Long enough that a fast machine has steps left for the last kill.
    assert disturb(tmp_path, [*flags, "--epochs", "40"], kills, ranks) == len(kills)
