"""The program from end to end: build, train or resume, measure, train the control, draw, report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from fastclip.data import DataError
from fastclip.models import CLIPConfig
from fastclip.train import checkpoint, distributed, metrics
from fastclip.train.build import build_model_config, build_source, force
from fastclip.train.config import Config, ConfigError, RunConfig
from fastclip.train.distributed import World
from fastclip.train.evaluate import Result
from fastclip.train.loop import Diverged, Trainer
from fastclip.train.report import Summary, notes, text_table, write_report
from fastclip.train.signals import StopSignals
from fastclip.train.watchers import find_watchers

logger = logging.getLogger("fastclip.train")


def run(config: Config, stop: StopSignals | None = None) -> Path:
    """Carry out a run; return its folder, which holds report.html, pictures, metrics.jsonl and checkpoints.

    Under torchrun every process calls this; the first one prints and writes.

    Raises:
        ConfigError: a setting that cannot work, a checkpoint of another model, unusable data.
        Stopped: a signal ended the run; it can be resumed.
        Diverged, DataError: the run could not go on; the report is written.
        RankError, OSError: the run could not go on.
    """
    started = time.perf_counter()
    world = distributed.start(config.run.device, config.run.dist_timeout)
    folder, path = place(config, world)
    saved = None if path is None else checkpoint.load(path)
    model_config = choose_model(config, saved)
    source = build_source(config, model_config)
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, logs=str(folder.parent), name=folder.name, resume=None)
    )

    trainer = Trainer(config, model_config, source, folder, world=world, stop=stop, resumed=saved is not None)
    if saved is not None:
        trainer.resume(saved)
        saved = None  # weights and Adam's state once more, for as long as the run lasts
    facts = describe(trainer)
    if world.is_main:
        write_settings(config, folder, world)
        print("\n".join(facts), flush=True)
    try:
        trainer.train()
        if not trainer.exams.taken:  # a resumed run that had nothing left to do
            trainer.exams.retrieval()
    except (Diverged, DataError) as error:  # both are raised on all ranks
        skipped = everyones_skipped(trainer)
        if world.is_main:
            report(trainer, None, {}, facts, skipped, failure=str(error))
        world.any(True)  # a launcher ends the others as soon as one has failed
        raise
    skipped = everyones_skipped(trainer)
    distributed.finish()
    if not world.is_main:
        return folder

    wanted = config.run.control_steps > 0 and not config.data.shuffle_captions
    control = train_control(trainer, model_config) if wanted else None
    pictures = draw(trainer) if config.run.pictures else {}
    total = time.perf_counter() - started
    facts.append(f"{trainer.seconds:.0f} s of training, {total:.0f} s in all")
    print_summary(report(trainer, control, pictures, facts, skipped), folder)
    return folder


def place(config: Config, world: World) -> tuple[Path, Path | None]:
    """Return the run's folder, and the checkpoint to continue from; rank 0 decides for all.

    When torchrun has restarted the processes, the run goes on in the folder it had, from its last whole checkpoint.
    """

    def decide() -> tuple[Path, Path | None]:
        if world.attempt and world.store is not None and world.store.check(["run_folder"]):
            folder = Path(world.store.get("run_folder").decode())
            saved = newest(dataclasses.replace(config.run, resume=str(folder)), may_be_new=True)
            logger.warning(
                "restart %d of %s, from %s",
                world.attempt,
                folder.name,
                "the start" if saved is None else saved.name,
            )
            return folder, saved
        saved = newest(config.run, may_be_new=config.run.resume == "latest") if config.run.resume else None
        folder = run_folder(config, resumed=config.run.resume is not None)
        check_writing(config.run, folder)
        return folder, saved

    return world.from_main(decide)


def check_writing(run: RunConfig, folder: Path) -> None:
    """Raise ConfigError if the run's folder cannot be made, or `--report-to` cannot be served: before it is made."""
    find_watchers(run.report_to)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(
            f"--logs {run.logs}: {there} is a file, but runs need a folder; name another one with --logs"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--logs {run.logs}: nothing can be written into {there}; name another folder with --logs"
        )


def choose_model(config: Config, saved: checkpoint.Checkpoint | None) -> CLIPConfig:
    """Return the config of the model to train, or to train further."""
    if saved is not None and config.model.pretrained is not None:  # which need no longer be there
        return force(config.model, CLIPConfig.from_dict(saved.model_config))
    return build_model_config(config)


def newest(run: RunConfig, *, may_be_new: bool) -> Path | None:
    """Return the checkpoint to continue from; None for a run that may be new, and that has none yet."""
    try:
        return checkpoint.find(run)
    except checkpoint.NoCheckpoint:
        if may_be_new:
            return None
        raise


def write_settings(config: Config, folder: Path, world: World) -> None:
    """Make the run's folder, write config.json and run.yaml, the file that `--config` reads, into it."""
    folder.mkdir(parents=True, exist_ok=True)
    if world.store is not None:
        world.store.set("run_folder", str(folder.absolute()))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    (folder / "run.yaml").write_text(config.to_yaml())


def run_folder(config: Config, *, resumed: bool) -> Path:
    """Return the run's folder; a new run never shares one with an older run."""
    stamp = time.strftime("%Y_%m_%d-%H_%M_%S")
    automatic = f"{stamp}-model_{config.model.model}-lr_{config.optim.lr:g}-b_{config.data.batch_size}"
    name = config.run.name or automatic
    folder = Path(config.run.logs) / name
    if resumed:
        return folder
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder


def describe(trainer: Trainer) -> list[str]:
    """Return what is about to be trained, on what, and how."""
    config, model = trainer.config, trainer.model
    weights = sum(p.numel() for p in model.parameters())
    loss = "sigmoid" if config.loss.siglip else "softmax"
    micro, ranks = config.data.rows_at_a_time, trainer.world.size
    decoder = getattr(trainer.source, "decoder", None)
    return [
        f"data: {trainer.source.name}, {len(trainer.source):,} pairs" + (f", {decoder}" if decoder else ""),
        f"model: {config.model.model}, "
        + (f"from {config.model.pretrained}, " if config.model.pretrained else "")
        + f"{weights / 1e6:.1f} M parameters, "
        f"{trainer.precision}, {trainer.device}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}",
        f"loss: {loss}, backend {trainer.backend}; batch {trainer.batch_size:,}"
        + (f" over {ranks} ranks" + (", weights sharded" if config.run.fsdp else "") if ranks > 1 else "")
        + (f" in micro-batches of {micro:,}" if micro else ""),
        f"length: {trainer.total_steps:,} steps, {trainer.total_steps / trainer.steps_per_epoch:.1f} epochs, "
        f"seed {config.run.seed}",
    ]


def control_steps(config: Config, trainer: Trainer) -> int:
    """Return the length of the control."""
    return min(config.run.control_steps, trainer.total_steps)


def train_control(trainer: Trainer, model_config: CLIPConfig) -> list[Result]:
    """Train the same model afresh for a few steps on the same pictures with shuffled captions; measure it."""
    config = trainer.config
    steps = control_steps(config, trainer)
    warmup = None if config.optim.warmup is None else config.optim.warmup * steps // trainer.total_steps
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, shuffle_captions=True),
        optim=dataclasses.replace(config.optim, steps=steps, warmup=warmup),
        run=dataclasses.replace(config.run, val_frequency=0, zeroshot_data=None),
    )
    print(f"control: the same model on shuffled captions, {steps:,} steps")
    control = Trainer(config, model_config, build_source(config, model_config))
    control.train()
    return control.exams.results


def everyones_skipped(trainer: Trainer) -> tuple[Counter[str], dict[str, str]]:
    """Return what all ranks had to skip, on rank 0: pairs by reason, and reason by file."""
    trainer.skipped_files.gather()
    return trainer.skipped, trainer.skipped_files.files


def report(
    trainer: Trainer,
    control: list[Result] | None,
    pictures: dict[str, str],
    facts: list[str],
    skipped: tuple[Counter[str], dict[str, str]],
    failure: str | None = None,
) -> Summary:
    """Write the run's report into its folder; return what is in it."""
    config, source, exams = trainer.config, trainer.source, trainer.exams
    title = f"{source.name}: {config.model.model}, {trainer.step:,} steps"
    summary = Summary(
        title=f"Control: {title}" if config.data.shuffle_captions else title,
        results=exams.results + ([] if exams.classified is None else [exams.classified]),
        control=control,
        control_label=f"shuffled captions, {control_steps(config, trainer):,} of {trainer.total_steps:,} steps",
        facts=facts,
        pictures=pictures,
        credits=getattr(source, "credits", None),
        skipped=dict(skipped[0]),
        skipped_files=skipped[1],
        skipped_steps=trainer.skipped_steps,
        failure=failure,
    )
    if trainer.folder is not None:
        write_report(summary, trainer.folder, tests=exams.embedded, config=config.to_dict())
    return summary


def draw(trainer: Trainer) -> dict[str, str]:
    """Draw the run's pictures into its folder; return file by title."""
    from fastclip.train import pictures

    folder, tests = trainer.folder, trainer.exams.embedded
    if folder is None:
        return {}
    recalls = {
        f"{result.name}, R@{result.headline.removeprefix('R@')}": f"{prefix}/image_to_text_{result.headline}"
        for prefix, result in zip(trainer.exams.prefixes, trainer.exams.results, strict=True)
        if result.headline is not None
    }
    lines = metrics.read(folder / "metrics.jsonl")
    sheets: dict[str, tuple[str, Callable[[Path], None]]] = {
        "Curves": ("curves.png", lambda path: pictures.draw_curves(lines, path, recalls)),
    }
    if tests:
        sheets |= {
            "Pictures found by caption": ("retrieval.png", lambda path: pictures.draw_retrieval(tests, path)),
            "Similarities": ("similarity.png", lambda path: pictures.draw_similarity(tests, path)),
            "A map of the space": ("map.png", lambda path: pictures.draw_map(tests, path)),
        }
    for file, draw_into in sheets.values():
        draw_into(folder / file)
    return {title: file for title, (file, _) in sheets.items()}


def print_summary(summary: Summary, folder: Path) -> None:
    """Print the table, what it means, and where everything lies."""
    print()
    if summary.results:
        print(text_table(summary))
        print()
        print("\n".join(textwrap.fill(note, 110) for note in notes(summary)))
    if summary.skipped:
        print(
            "skipped: "
            + ", ".join(f"{reason} ({count})" for reason, count in sorted(summary.skipped.items()))
        )
    print(summary.facts[-1])
    print(f"report: {folder / 'report.html'}")
