"""The training loop: fetch, step, and write down what happened; on several ranks as on one."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch

from fastclip.data.source import DataError, Pairs, PairSource
from fastclip.models import CLIPConfig
from fastclip.train import checkpoint, distributed, precision
from fastclip.train.build import build_model, build_tokenizer, pick_backend, pick_device
from fastclip.train.checkpoint.ranks import gather
from fastclip.train.config import Config, ConfigError
from fastclip.train.distributed import World
from fastclip.train.encoders import Encoders
from fastclip.train.exams import RETRIEVAL, ZEROSHOT, Exams, Interrupted
from fastclip.train.feed import Batch, Cursor, batches, steps_per_epoch
from fastclip.train.journal import Journal, Moment
from fastclip.train.metrics import Meter, read
from fastclip.train.optim import AveragedWeights, build_optimizer, learning_rate
from fastclip.train.origin import changed, origin
from fastclip.train.signals import Stopped, StopSignals
from fastclip.train.skipped import SkippedFiles
from fastclip.train.step import Inputs, Outcome, Step

logger = logging.getLogger("fastclip.train")


class Diverged(RuntimeError):
    """Loss or gradient were not finite in too many steps in a row; the message says where, and what to change."""


class Trainer:
    """Train one CLIP on one source of pairs.

    The whole state is the model, the optimizer, the random generators, the step, and a place in the data. The
    order of pairs and the learning rate are functions of those, so a resumed run is the same run.

    Args:
        config: the run.
        model_config: the model.
        source: the pairs, and the held-out tests; the same on every rank.
        folder: where metrics and checkpoints go; None keeps the run in memory.
        world: the ranks that train together.
        stop: what signals ask for.
        resumed: whether `resume` will follow, so that weights to start from are not needed.
        quiet: print nothing. Other ranks than the first never do.
    """

    def __init__(
        self,
        config: Config,
        model_config: CLIPConfig,
        source: PairSource,
        folder: Path | None = None,
        *,
        world: World | None = None,
        stop: StopSignals | None = None,
        resumed: bool = False,
        quiet: bool = False,
    ) -> None:
        if len(source) == 0:
            raise ConfigError(f"{source.name} has no pairs to train on")
        self.world = World() if world is None else world
        self.stop = StopSignals() if stop is None else stop
        self.config, self.source, self.folder = config, source, folder
        self.quiet = quiet or not self.world.is_main
        self.device = pick_device(config.run.device, self.world.local_rank)
        self.backend = pick_backend(config.loss.backend, self.device)
        self.precision = precision.resolve(config.model.precision, self.device)
        self.model = build_model(config, model_config, source, self.device, resumed=resumed)
        if self.world.rank > 0:  # the weights are everybody's, dropout is not
            torch.manual_seed(config.run.seed + 1_000_003 * self.world.rank)
        self.tokenizer = build_tokenizer(config, model_config)
        self.encoders = self._encoders()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = precision.LossScaler() if self.precision == "amp_fp16" else None
        self.averaged = None if config.optim.ema is None else AveragedWeights(self.model, config.optim.ema)
        self.take_step = Step(
            config, self.encoders, self.optimizer, self.world, self.backend, self.scaler, self.averaged
        )

        self.batch_size = config.data.rows_per_rank * self.world.size  #: of all ranks
        self.steps_per_epoch = steps_per_epoch(len(source), self.batch_size)
        self.total_steps = config.optim.steps or config.optim.epochs * self.steps_per_epoch
        self.step = 0
        self.cursor = Cursor()
        self.skipped_files = SkippedFiles(
            source, self.world, None if folder is None else folder / "skipped.txt"
        )
        self.skipped_steps = self.skipped_in_a_row = 0
        self.exams = Exams(
            self.encoders,
            self.tokenizer,
            source,
            config.run,
            self.world,
            self.device,
            self.averaged,
            self.stop,
            config.data.batch_size,
        )
        self.owed: Sequence[str] = ()  #: exams that were due when the run was saved that it has resumed from
        self.saved_at = time.monotonic()  #: of the last checkpoint, or the start
        self.saved_step = -1  #: of the last checkpoint
        self.seconds = 0.0  #: spent in `train`, without evaluations and checkpoints

    def _encoders(self) -> Encoders:
        encoders = Encoders(self.model, self.precision)
        if self.config.run.fsdp and self.world.size > 1:
            scalars = [parameter for parameter in self.model.parameters() if not parameter.ndim]
            distributed.shard(encoders, self.world, self.device.type, scalars)
        if self.config.model.torchcompile:
            encoders.compile()
        return encoders

    def train(self, until: int | None = None) -> None:
        """Train up to step `until`, by default to the end. Every rank must call it.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            Diverged: too many steps in a row had to be skipped.
            DataError: too many pairs cannot be read, on some rank; the state is saved.
            RankError: another rank cannot go on.
            OSError: the last checkpoint could not be written.
        """
        last = self.total_steps if until is None else min(until, self.total_steps)
        journal = Journal(
            self.config,
            self.folder,
            self.world,
            self.device,
            pairs=len(self.source),
            start=self.step,
            total=self.total_steps,
            last=last,
            quiet=self.quiet,
        )
        self.model.train()
        try:
            with self.stop.patient():
                self._sit_what_is_owed(journal)
                began = time.perf_counter()
                journal.meter.restart()
                for batch in self._batches(last - self.step, journal.meter):
                    lr = self.learning_rate
                    outcome = self._step(batch, lr)
                    journal.meter.count(len(batch.pairs))
                    skipped = {"pairs": self.skipped.total(), "steps": self.skipped_steps}
                    scale = self.model.logit_scale.detach().exp().item()
                    now = self._moment(batch.at)
                    journal.step(now, outcome, lr=lr, scale=scale, skipped=skipped)
                    self.seconds += time.perf_counter() - began
                    self._pause(batch, now, journal)
                    began = time.perf_counter()
                    journal.meter.restart()
        finally:
            journal.close()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step to come."""
        return learning_rate(self.step, self.total_steps, self.steps_per_epoch, self.config.optim)

    def _moment(self, last: Cursor) -> Moment:
        """Return where the run stands after a batch from `last`."""
        pairs = len(self.source)
        epoch = self.cursor.epoch + self.cursor.position / pairs
        return Moment(self.step, epoch, last.epoch, min(pairs, last.position + self.batch_size))

    def _batches(self, count: int, meter: Meter) -> Iterator[Batch]:
        """Yield this rank's batches; before each, ranks tell each other of errors, signals and saves that are due."""
        data = self.config.data
        feed = batches(
            self.source,
            data.rows_per_rank,
            seed=self.config.run.seed,
            start=self.cursor,
            count=count,
            workers=data.workers,
            rank=self.world.rank,
            world_size=self.world.size,
            max_bad_share=data.max_bad_share,
        )
        for _ in range(count):
            asked = time.perf_counter()
            batch, error = None, None
            try:
                batch = next(feed)
            except DataError as failure:
                error = failure
            meter.waited(time.perf_counter() - asked)
            self.skipped_files.note()
            to_list = self.skipped_files.is_waiting and self.step % self.config.run.log_every_n_steps == 0
            failed, stopped, save, to_list = self.world.any(
                error is not None, self.stop.received is not None, self._is_time(), to_list
            )
            if failed:
                self._give_up(error)
            if stopped:
                self._stop()
            if save:
                self.save(final=False)
            if to_list:
                self.skipped_files.gather()
            if batch is not None:
                yield batch

    def _step(self, batch: Batch, lr: float) -> Outcome:
        """Take one step, or skip it if its numbers are no use, and count it."""
        outcome = self.take_step(self.inputs(batch.pairs), lr)
        self.step, self.cursor = self.step + 1, batch.next
        self.skipped_in_a_row = 0 if outcome.taken else self.skipped_in_a_row + 1
        self.skipped_steps += not outcome.taken
        if self.skipped_in_a_row >= self.config.optim.max_skipped_steps:
            raise Diverged(
                f"loss or gradient were not finite in {self.skipped_in_a_row} steps in a row, up to step {self.step} "
                f"(loss {outcome.loss:g}, norm of the gradient {outcome.gradient_norm:g}). All were skipped, so the "
                "weights are those of before; the last checkpoint is intact. Resume from it with a lower --lr, a "
                "longer --warmup or --grad-clip-norm 1"
            )
        return outcome

    def inputs(self, pairs: Pairs) -> Inputs:
        """Bring a batch to the device."""
        texts = self.tokenizer(pairs.captions) if pairs.text_features is None else pairs.text_features
        parts = (pairs.images, texts, pairs.labels)
        return Inputs(*(part.to(self.device, non_blocking=True) for part in parts))

    def _pause(self, batch: Batch, now: Moment, journal: Journal) -> None:
        """Save and sit exams where that is due: in this order, since exams can take longer than a cluster waits."""
        run, ended = self.config.run, self.step == self.total_steps
        frequencies = {RETRIEVAL: run.val_frequency, ZEROSHOT: run.zeroshot_frequency}
        exams = [exam for exam, every in frequencies.items() if ended or self._due(every, 0, batch)]
        if ended or self._due(run.save_frequency, run.save_every_n_steps, batch):
            self.save(final=ended, owed=exams)
        self._sit(exams, now, journal)

    def _sit_what_is_owed(self, journal: Journal) -> None:
        """Sit the exams that were due at the checkpoint, if the run was cut short before it had sat them.

        At the end of a run they are sat in any case, for its report.
        """
        if not self.owed:
            return
        held = self.world.from_main(self._held)
        ended = self.step == self.total_steps
        now = self._moment(self.cursor)  # its place within the pass is for lines on steps: exams have none
        self._sit([exam for exam in self.owed if ended or exam not in held], now, journal, held)
        self.owed = ()

    def _held(self) -> set[str]:
        """Return the exams of the present step whose figures are in the log."""
        lines = [] if self.folder is None else read(self.folder / "metrics.jsonl")
        return self.exams.held({key for line in lines if line["step"] == self.step for key in line})

    def _sit(
        self, exams: Sequence[str], now: Moment, journal: Journal, written: Collection[str] = ()
    ) -> None:
        """Sit some exams and write down their figures, but those that are written down already.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        for number, exam in enumerate(exams):
            try:
                if exam == RETRIEVAL:
                    results = self.exams.retrieval()
                    if exam not in written:
                        journal.retrieval(now, results)
                else:
                    figures = self.exams.zeroshot()
                    if exam not in written:
                        journal.zeroshot(now, figures)
            except Interrupted:
                self._stop(owed=exams[number:])

    def _due(self, every_epochs: int, every_steps: int, batch: Batch) -> bool:
        """Return whether something done every so many epochs or steps is due after this batch (0: never)."""
        ended = batch.next.epoch != batch.at.epoch
        by_epochs = every_epochs > 0 and ended and batch.next.epoch % every_epochs == 0
        by_steps = every_steps > 0 and self.step % every_steps == 0
        return by_epochs or by_steps

    def _is_time(self) -> bool:
        """Return whether `--save-every-minutes` have passed since the last save, by rank 0's clock."""
        minutes = self.config.run.save_every_minutes
        return self.world.is_main and minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _stop(self, owed: Sequence[str] = ()) -> NoReturn:
        """Save what is not saved yet, and end the run as a signal to some rank asked.

        Args:
            owed: exams that are due and not sat.
        """
        if self.saved_step < self.step:
            self.save(owed=owed)
        self.skipped_files.gather()  # also what exams could not read since the save
        where = "nothing is saved" if self.folder is None else "all is saved; --resume continues"
        number = signal.SIGTERM if self.stop.received is None else self.stop.received
        raise Stopped(number, f" after step {self.step:,}: {where}")

    def _give_up(self, error: DataError | None) -> NoReturn:
        """Save, and end the run on every rank because of data that cannot be read on some.

        All raise DataError, so that all may take part in the report, which rank 0 writes with the reason.
        """
        if self.saved_step < self.step:
            self.save(final=False)
        reasons = gather(None if error is None else str(error))
        rank = next(rank for rank, reason in enumerate(reasons) if reason is not None)
        if error is None and not self.world.is_main:
            raise DataError("another rank cannot go on; its message says why")
        is_saved = self.saved_step == self.step
        saved = f". All up to step {self.step:,} is saved; --resume continues" if is_saved else ""
        said = f"rank {rank}: {reasons[rank]}" if error is None else str(error)
        raise DataError(said + saved) from error

    @property
    def skipped(self) -> Counter[str]:
        """Unreadable pairs so far by reason: all of them on rank 0, none on others."""
        return self.skipped_files.counts

    def save(self, *, final: bool = True, owed: Sequence[str] = ()) -> Path | None:
        """Write a checkpoint of the present step, if the run has a folder; return its path.

        Args:
            final: there are none to come.
            owed: exams that are due now: a run that is resumed sits them, unless they are in its log.

        Raises:
            OSError: it could not be written. Where more are to come (`final` is false) that is only a warning: the
                last one is intact, and the disk may have room again by the next.
        """
        self.saved_at = time.monotonic()
        self.world.average_statistics(self.model, self.averaged)
        if self.folder is None:
            return None
        self.skipped_files.gather()
        state = {"step": self.step, **asdict(self.cursor), "seconds": round(self.seconds, 3)}
        state["data"] = origin(self.source)
        state |= {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row}
        state["exams_owed"] = list(owed)
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.averaged is not None:
            state["ema_steps"] = self.averaged.steps
        try:
            path = checkpoint.save(
                self.folder / "checkpoints",
                model=self.model,
                optimizer=self.optimizer,
                ema=None if self.averaged is None else self.averaged.weights,
                state=state,
                counters=self.skipped,
                config=self.config.to_dict(),
                model_config=self.model.config.to_dict(),
                documents={"run.yaml": self.config.to_yaml()},
                keep=self.config.run.keep_checkpoints,
            )
            self.saved_step = self.step
            return path
        except OSError as error:
            if final:
                raise
            if self.world.is_main:
                logger.warning(
                    "warning: no checkpoint of step %d (%s); earlier ones are intact", self.step, error
                )
            return None

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: the steps that follow are those the saved run would have taken.

        On other data they cannot be. That is allowed, since data may have been repaired, and is a warning.
        """
        state = checkpoint.restore(saved, self.model, self.optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        self.cursor = Cursor(state["epoch"], state["position"])
        self.owed = state.get("exams_owed", ())  # earlier versions sat them before they saved
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
        self.skipped_files.resume(state["counters"])
        if self.world.is_main and (change := changed(state.get("data"), self.source)):
            logger.warning("warning: %s. It stands at step %d of %d", change, self.step, self.total_steps)
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None and saved.ema is not None:
            self.averaged.load(saved.ema, state["ema_steps"])
        elif self.averaged is not None:
            self.averaged.restart()
