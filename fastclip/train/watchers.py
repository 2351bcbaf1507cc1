"""Send a run's metrics to TensorBoard and Weights & Biases as well, under the same keys."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastclip.train.config import ConfigError


class Watcher(Protocol):
    """Something that is told every line of metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take one line."""

    def close(self) -> None:
        """Finish what is still under way."""


def open_watchers(
    report_to: str, folder: Path, config: Mapping[str, Any], resume_step: int = 0
) -> list[Watcher]:
    """Open what `--report-to` names.

    Args:
        report_to: "tensorboard", "wandb" or both with a comma between them; "" or "none" for neither; "all".
        folder: of the run; its name is the run's.
        config: Config.to_dict() of the run.
        resume_step: the step the run starts from; later lines of an earlier course are hidden.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    return [_OPENERS[name](folder, config, resume_step) for name in find_watchers(report_to)]


def find_watchers(report_to: str) -> list[str]:
    """Return the names in `--report-to`, each once.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    names = [name.strip() for name in report_to.lower().split(",") if name.strip() not in ("", "none")]
    if "all" in names:
        names = list(_OPENERS)
    if unknown := [name for name in names if name not in _OPENERS]:
        raise ConfigError(f"--report-to {unknown[0]} is unknown; known are {', '.join(_OPENERS)}, all, none")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"--report-to {missing[0]} needs a package that is not installed: "
            f"pip install 'fastclip-kernels[watch]', or {missing[0]} alone"
        )
    return list(dict.fromkeys(names))


class TensorBoard:
    """Write event files into `folder`/tensorboard: `tensorboard --logdir` of all runs' folder shows them."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Log to `--wandb-project-name`, WANDB_PROJECT or `fastclip`, offline where WANDB_MODE says so.

    A resumed run goes on under the same identifier, which is the name of its folder.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        import os

        import wandb

        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project=config.get("run", {}).get("wandb_project_name")
            or os.environ.get("WANDB_PROJECT", "fastclip"),
            name=folder.name,
            id=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
            settings=settings,
        )
        # With a step of our own: W&B's only grows, and would drop what a resumed run says of steps it has seen.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        self._run.log({**finite, "step": step})

    def close(self) -> None:
        self._run.finish()


_OPENERS: dict[str, Callable[[Path, Mapping[str, Any], int], Watcher]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
