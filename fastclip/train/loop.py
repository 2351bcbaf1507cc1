"""The training loop: fetch, encode, contrast, step, and write down what happened."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

import fastclip
from fastclip.backends import resolve_backend
from fastclip.data.source import HeldOut, Pairs, PairSource
from fastclip.grad_cache import cached_backward
from fastclip.models import CLIP, CLIPConfig, Tokenizer
from fastclip.train import checkpoint
from fastclip.train.config import Config, ConfigError
from fastclip.train.evaluate import Embedded, Result, embed, measure
from fastclip.train.feed import Batch, Cursor, batches, steps_per_epoch
from fastclip.train.metrics import Console, Meter, MetricLog
from fastclip.train.optim import build_optimizer, learning_rate, set_learning_rate


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step, why, and what to change."""


class Trainer:
    """Train one CLIP on one source of pairs.

    The whole state is the model, the optimizer, the random generators, the step, and a place in the data. The
    order of pairs and the learning rate are functions of those, so a resumed run is the same run.

    Args:
        config: the run.
        model_config: the model.
        source: the pairs, and the held-out tests of `evaluate`.
        folder: where metrics and checkpoints go; None keeps the run in memory.
        quiet: print nothing.
    """

    def __init__(
        self,
        config: Config,
        model_config: CLIPConfig,
        source: PairSource,
        folder: Path | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        if len(source) == 0:
            raise ConfigError(f"{source.name} has no pairs to train on")
        self.config, self.source, self.folder, self.quiet = config, source, folder, quiet
        self.device = pick_device(config.run.device)
        self.backend = pick_backend(config.loss.backend, self.device)
        torch.manual_seed(config.run.seed)
        self.model = CLIP(model_config).to(self.device)
        self.tokenizer = Tokenizer()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.steps_per_epoch = steps_per_epoch(len(source), config.data.batch_size)
        self.total_steps = config.optim.steps or config.optim.epochs * self.steps_per_epoch
        self.step = 0
        self.cursor = Cursor()
        self.tests: list[HeldOut] | None = None
        self.embedded: list[Embedded] = []  #: the held-out tests as the model saw them at the last evaluation
        self.results: list[Result] = []  #: and the figures it got
        self.seconds = 0.0  #: spent in `train`, without evaluations and checkpoints

    def train(self, until: int | None = None) -> None:
        """Train up to step `until`, by default to the end.

        Raises:
            TrainingError: the loss is no longer a finite number, or no pair of an epoch could be read.
        """
        run = self.config.run
        last = self.total_steps if until is None else min(until, self.total_steps)
        log = None if self.folder is None else MetricLog(self.folder / "metrics.jsonl", self.step)
        console = Console(self.total_steps, self.step, self.label.lower(), quiet=self.quiet)
        meter = Meter()
        self.model.train()
        started = time.perf_counter()
        try:
            for batch in self._timed_batches(last - self.step, meter):
                loss, lr = self._step(batch.pairs)
                self.step, self.cursor = self.step + 1, batch.next
                meter.count(len(batch.pairs))
                scale = self.model.logit_scale.exp().item()
                console.advance(loss=f"{loss:.3f}", scale=f"{scale:.1f}")

                if self.step % run.log_every_n_steps == 0 or self.step in (1, last):
                    figures = {"train/loss": loss, "train/scale": scale, "train/lr": lr, **meter.flush()}
                    console.line(self._describe(batch, figures), bar_says_it=True)
                    if log is not None:
                        log.write(self.step, self.epoch, figures)
                paused = time.perf_counter()
                if self._due(run.val_frequency, 0, batch) or self.step == self.total_steps:
                    self.evaluate(log, console)
                if (
                    self._due(run.save_frequency, run.save_every_n_steps, batch)
                    or self.step == self.total_steps
                ):
                    self.save()
                started += time.perf_counter() - paused
                meter.restart()
        finally:
            self.seconds += time.perf_counter() - started
            console.close()

    @property
    def label(self) -> str:
        """What lines about steps begin with."""
        return "Control" if self.config.data.shuffle_captions else "Train"

    @property
    def epoch(self) -> float:
        """Passes over the pairs so far, with a fraction."""
        return self.cursor.epoch + self.cursor.position / len(self.source)

    def _step(self, pairs: Pairs) -> tuple[float, float]:
        """Take one optimizer step on a batch; return its loss (nats) and learning rate."""
        optim = self.config.optim
        images = pairs.images.to(self.device, non_blocking=True)
        tokens = self.tokenizer(pairs.captions, self.model.context_length).to(self.device, non_blocking=True)
        labels = pairs.labels.to(self.device, non_blocking=True)

        lr = learning_rate(self.step, self.total_steps, optim)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss = cached_backward(
            lambda image_features, text_features: self._loss(image_features, text_features, labels),
            (self._encode_image, images),
            (self._encode_text, tokens),
            micro_batch_size=self.config.data.micro_batch_size,
        ).item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {self.step}; the last checkpoint is intact. "
                "Resume from it with a lower --lr, a longer --warmup or --grad-clip-norm 1"
            )
        if optim.grad_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.grad_clip_norm)
        self.optimizer.step()
        self.model.clamp_logit_scale_()
        return loss, lr

    def _loss(self, image_features: Tensor, text_features: Tensor, labels: Tensor) -> Tensor:
        loss = fastclip.siglip_loss if self.config.loss.siglip else fastclip.clip_loss
        return loss(
            image_features,
            text_features,
            self.model.logit_scale.exp(),
            logit_bias=getattr(self.model, "logit_bias", None),
            labels=labels,
            normalize=True,
            backend=self.backend,
        )

    def _encode_image(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_image(self.model.preprocess(images)).float()

    def _encode_text(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_text(tokens).float()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.model.precision == "amp_bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def evaluate(self, log: MetricLog | None = None, console: Console | None = None) -> list[Result]:
        """Measure the held-out tests; write the figures to the log under "val/…"."""
        if self.tests is None:
            self.tests = self.source.held_out()
        self.model.eval()
        self.embedded = [embed(test, self.embed_images, self.embed_texts) for test in self.tests]
        self.results = [measure(embedded) for embedded in self.embedded]
        self.model.train()
        for prefix, result in zip(self.prefixes, self.results, strict=True):
            if log is not None:
                log.write(self.step, self.epoch, {f"{prefix}/{key}": v for key, v in result.metrics.items()})
            if console is not None:
                shown = {k: v for k, v in result.metrics.items() if "R@" in k or k == "choice"}
                figures = "\t".join(f"{key}: {value:.4f}" for key, value in shown.items())
                name = result.name if self.label == "Train" else f"{self.label.lower()}, {result.name}"
                console.line(f"Eval Epoch: {self.epoch:.1f} {name}\t{figures}")
        return self.results

    @property
    def prefixes(self) -> list[str]:
        """What the keys of each result begin with: one test is simply "val", several carry their names."""
        if len(self.results) == 1:
            return ["val"]
        return [f"val/{result.name.replace(' ', '_')}" for result in self.results]

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Encode uint8 pictures (B, 3, S, S) to features (B, D)."""
        return self._encode_image(images.to(self.device))

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Encode B captions to features (B, D)."""
        return self._encode_text(self.tokenizer(texts, self.model.context_length).to(self.device))

    def save(self) -> Path | None:
        """Write a checkpoint of the present step, if the run has a folder; return its path."""
        if self.folder is None:
            return None
        return checkpoint.save(
            self.folder / "checkpoints",
            model=self.model,
            optimizer=self.optimizer,
            state={"step": self.step, **asdict(self.cursor), "seconds": round(self.seconds, 3)},
            config=self.config.to_dict(),
            model_config=self.model.config.to_dict(),
            keep=self.config.run.keep_checkpoints,
        )

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: the steps that follow are those the saved run would have taken."""
        state = checkpoint.restore(saved, self.model, self.optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        self.cursor = Cursor(state["epoch"], state["position"])

    def _timed_batches(self, count: int, meter: Meter) -> Iterator[Batch]:
        """Yield the batches that can be used, and tell the meter how long each kept the loop waiting."""
        data = self.config.data
        feed = batches(
            self.source,
            data.batch_size,
            seed=self.config.run.seed,
            start=self.cursor,
            count=count,
            workers=data.workers,
        )
        while True:
            asked = time.perf_counter()
            batch = next(feed, None)
            if batch is None:
                return
            meter.waited(time.perf_counter() - asked)
            if len(batch.pairs) == 0:
                reasons = ", ".join(f"{reason}: {n}" for reason, n in self.source.skipped.most_common())
                raise TrainingError(
                    f"no pair of a whole batch of {self.source.name} could be read ({reasons})"
                )
            yield batch

    def _due(self, every_epochs: int, every_steps: int, batch: Batch) -> bool:
        """Return whether something done every so many epochs or steps is due after this batch (0: never)."""
        ended = batch.next.epoch != batch.at.epoch
        by_epochs = every_epochs > 0 and ended and batch.next.epoch % every_epochs == 0
        by_steps = every_steps > 0 and self.step % every_steps == 0
        return by_epochs or by_steps

    def _describe(self, batch: Batch, figures: dict[str, float]) -> str:
        """Return a line about the last step, worded as open_clip's."""
        pairs = len(self.source)
        done = min(pairs, batch.at.position + self.config.data.batch_size)
        return (
            f"{self.label} Epoch: {batch.at.epoch} [{done:>{len(str(pairs))}}/{pairs} ({100 * done / pairs:.0f}%)] "
            f"Data (t): {figures['train/data_time']:.3f} Batch (t): {figures['train/batch_time']:.3f}, "
            f"{figures['train/samples_per_second']:.1f}/s LR: {figures['train/lr']:.6f} "
            f"Logit Scale: {figures['train/scale']:.3f} Loss: {figures['train/loss']:.5g}"
        )


def pick_device(name: str) -> torch.device:
    """Return the device that `--device` means; "auto" is the first GPU, or the CPU.

    Raises:
        ConfigError: the name is no device, or one this PyTorch cannot use.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used: {reason}; --device auto picks one") from error
    return device


def pick_backend(name: str, device: torch.device) -> str:
    """Return the kernels that `--backend` means on this device; features reach the loss in float32.

    Raises:
        ConfigError: there are none of that name, or they cannot run here.
    """
    try:
        return resolve_backend(name, device, torch.float32)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--backend {name}: {error}") from error
