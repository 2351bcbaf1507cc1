"""TensorBoard and Weights & Biases get every figure under its key; nothing else is needed for a run."""

from __future__ import annotations

import importlib.util
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from fastclip.train.config import Config, ConfigError, RunConfig
from fastclip.train.metrics import MetricLog
from fastclip.train.watchers import open_watchers


def test_nothing_is_asked_for_by_default(tmp_path: Path) -> None:
    assert open_watchers("", tmp_path, {}) == []
    assert open_watchers("none", tmp_path, {}) == []


def test_an_unknown_or_missing_one_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--report-to tensorbored is unknown; known are tensorboard, wandb"):
        open_watchers("tensorbored", tmp_path, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--report-to wandb needs a package.*fastclip-kernels\[watch\]"):
        open_watchers("wandb", tmp_path, {})


def test_tensorboard_has_every_line_and_hides_an_abandoned_course(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricLog(tmp_path / "metrics.jsonl", watchers=open_watchers("tensorboard", tmp_path, {}))
    for step in (1, 2, 3):
        log.write(step, 0.0, {"train/loss": 1.0 / step, "val/image_to_text_R@1": 0.5})
    log.close()
    log = MetricLog(tmp_path / "metrics.jsonl", 2, open_watchers("tensorboard", tmp_path, {}, resume_step=2))
    log.write(3, 0.0, {"train/loss": 0.125})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "val/image_to_text_R@1"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.125),
    ]


@pytest.mark.parametrize(
    ("flag", "variable", "project"), [(None, None, "fastclip"), (None, "v", "v"), ("f", "v", "f")]
)
def test_wandbs_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str | None, variable: str | None, project: str
) -> None:
    """The flag wins over the variable."""
    asked: dict[str, Any] = {}
    wandb = ModuleType("wandb")
    wandb.Settings = dict  # type: ignore[attr-defined]
    wandb.init = lambda **settings: asked.update(settings) or MagicMock()  # type: ignore[attr-defined]
    wandb.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    open_watchers("wandb", tmp_path, Config(run=RunConfig(wandb_project_name=flag)).to_dict())
    assert asked["project"] == project


def test_wandb_offline_takes_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run-a"
    run.mkdir()
    log = MetricLog(run / "metrics.jsonl", watchers=open_watchers("wandb", run, {"optim": {"lr": 1e-3}}))
    log.write(1, 0.0, {"train/loss": 2.5, "train/scale": float("nan")})
    log.close()
    (stored,) = run.glob("wandb/offline-run-*/run-run-a.wandb")
    patience = time.monotonic() + 20  # its own process writes the file
    while b"train/loss" not in stored.read_bytes() and time.monotonic() < patience:
        time.sleep(0.1)
    assert b"train/loss" in stored.read_bytes()
