"""The journal of a run: every step and every exam, for whoever watches and for metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastclip.train.config import Config
from fastclip.train.distributed import World
from fastclip.train.evaluate import Result
from fastclip.train.metrics import Console, Meter, MetricLog
from fastclip.train.step import Outcome
from fastclip.train.watchers import open_watchers
from fastclip.train.wording import eval_line, train_line


@dataclass(frozen=True)
class Moment:
    """Where a run stands after a step."""

    step: int
    epoch: float  #: passes over the pairs, with a fraction
    pass_number: int  #: the pass in which the last step began, from 0
    done: int  #: pairs of that pass that have been seen


class Journal:
    """Write down what happens, on rank 0; keep the time of steps.

    Args:
        config: of the run.
        folder: where metrics.jsonl goes; None keeps none.
        world: the ranks that train together.
        device: whose memory is watched.
        pairs: of an epoch.
        start, total: steps done already, and of the whole run.
        last: the step at which this stretch of the run ends.
        quiet: print nothing.

    Raises:
        ConfigError: `--report-to` names something that is not installed.
    """

    def __init__(
        self,
        config: Config,
        folder: Path | None,
        world: World,
        device: torch.device,
        *,
        pairs: int,
        start: int,
        total: int,
        last: int,
        quiet: bool,
    ) -> None:
        self.label = "Control" if config.data.shuffle_captions else "Train"
        self.every, self.last, self.pairs = config.run.log_every_n_steps, last, pairs
        self.log: MetricLog | None = None
        if folder is not None and world.is_main:
            watchers = open_watchers(config.run.report_to, folder, config.to_dict(), start)
            self.log = MetricLog(folder / "metrics.jsonl", start, watchers)
        self._pass_number: int | None = None
        self._losses, self._steps = 0.0, 0  # of that pass: sum over the steps taken, and their number
        self.console = Console(total, start, self.label.lower(), quiet=quiet)
        self.meter = Meter(world.size, device)

    def step(
        self, at: Moment, outcome: Outcome, *, lr: float, scale: float, skipped: Mapping[str, int]
    ) -> None:
        """Move the bar on, and write a line of metrics where one is due.

        Args:
            at: where the run stands after the step.
            outcome: of the step.
            lr, scale: its learning rate, and the logits' multiplier after it.
            skipped: "pairs" and "steps" so far.
        """
        average = self._average(at, outcome)
        self.console.advance(loss=f"{outcome.loss:.3f}", scale=f"{scale:.1f}")
        if at.step % self.every and at.step not in (1, self.last):
            return
        figures = {
            "train/loss": outcome.loss,
            "train/contrastive_loss": outcome.loss,
            "train/scale": scale,
            "train/lr": lr,
            "train/gradient_norm": outcome.gradient_norm,
            **self.meter.flush(),
            **{f"train/skipped_{what}": count for what, count in skipped.items() if count},
        }
        line = train_line(self.label, at.pass_number, at.done, self.pairs, figures, average)
        self.console.line(line, bar_says_it=True)
        self._write(at, figures)

    def retrieval(self, at: Moment, results: Mapping[str, Result]) -> None:
        """Write the figures of held-out tests, by the prefix of their keys."""
        for prefix, result in results.items():
            self._write(at, {f"{prefix}/{key}": value for key, value in result.metrics.items()})
            name = result.name if self.label == "Train" else f"{self.label.lower()}, {result.name}"
            self.console.line(eval_line(at.epoch, result.metrics, name, brief=self.console.has_bar))

    def zeroshot(self, at: Moment, figures: Mapping[str, float]) -> None:
        """Write the figures of a classification, if there are any."""
        if figures:
            self._write(at, {f"val/{key}": value for key, value in figures.items()})
            self.console.line(eval_line(at.epoch, figures, brief=self.console.has_bar))

    def close(self) -> None:
        """Leave the bar as it stands, and let watchers finish."""
        self.console.close()
        if self.log is not None:
            self.log.close()

    def _average(self, at: Moment, outcome: Outcome) -> float:
        """Return the mean loss of the pass's steps, so far as this process has seen them, without skipped ones."""
        if at.pass_number != self._pass_number:
            self._pass_number, self._losses, self._steps = at.pass_number, 0.0, 0
        if outcome.taken:
            self._losses += outcome.loss
            self._steps += 1
        return self._losses / self._steps if self._steps else outcome.loss

    def _write(self, at: Moment, figures: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.write(at.step, at.epoch, figures)
