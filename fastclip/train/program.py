"""The program from end to end: build, train or resume, measure, train the control, draw, report."""

from __future__ import annotations

import dataclasses
import difflib
import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastclip.data import PairSource, open_source
from fastclip.models import PRESETS, CLIPConfig
from fastclip.train import checkpoint, metrics
from fastclip.train.config import Config, ConfigError
from fastclip.train.evaluate import Result
from fastclip.train.loop import Trainer
from fastclip.train.report import Summary, notes, text_table, write_report

SPLIT_SEED = 0  # what is held out does not depend on --seed: runs that differ in it remain comparable
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023


def run(config: Config) -> Path:
    """Carry out a run; return its folder, which holds report.md, pictures, metrics.jsonl and checkpoints.

    Raises:
        ConfigError: a setting that cannot work, a checkpoint of another model, unusable data.
        TrainingError: the run could not go on.
    """
    started = time.perf_counter()
    model_config = build_model_config(config)
    source = build_source(config, model_config)
    saved = None if config.run.resume is None else checkpoint.load(checkpoint.find(config.run))
    folder = run_folder(config, resumed=saved is not None)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=folder.name, resume=None))

    trainer = Trainer(config, model_config, source, folder)
    if saved is not None:
        trainer.resume(saved)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    facts = describe(trainer)
    print("\n".join(facts))
    trainer.train()
    if not trainer.results:  # a resumed run that had nothing left to do
        trainer.evaluate()

    wanted = config.run.control_steps > 0 and not config.data.shuffle_captions
    control = train_control(trainer, model_config) if wanted else None
    pictures = draw(trainer) if config.run.pictures else {}
    total = time.perf_counter() - started
    facts += [f"{trainer.seconds:.0f} s of training, {total:.0f} s in all"]
    title = f"{source.name}: {config.model.model}, {trainer.step:,} steps"
    summary = Summary(
        title=f"Control: {title}" if config.data.shuffle_captions else title,
        results=trainer.results,
        control=control,
        control_label=f"shuffled captions, {control_steps(config, trainer):,} of {trainer.total_steps:,} steps",
        facts=facts,
        pictures=pictures,
        credits=getattr(source, "credits", None),
        skipped=dict(source.skipped),
        skipped_files=getattr(source, "skipped_files", {}),
    )
    write_report(summary, folder / "report.md")
    print_summary(summary, folder)
    return folder


def build_model_config(config: Config) -> CLIPConfig:
    """Return the preset that `--model` names; under `--siglip` with the start values that loss needs."""
    name = config.model.model
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown --model {name}; did you mean {near}? Known are: {', '.join(PRESETS)}")
    if config.loss.siglip:
        return dataclasses.replace(PRESETS[name], init_logit_scale=SIGLIP_SCALE, init_logit_bias=SIGLIP_BIAS)
    return PRESETS[name]


def build_source(config: Config, model_config: CLIPConfig) -> PairSource:
    """Open the pairs that `--train-data` names, at the model's picture size."""
    try:
        return open_source(
            config.data.train_data,
            model_config.vision.image_size,
            seed=SPLIT_SEED,
            shuffled_captions=config.data.shuffle_captions,
            csv_img_key=config.data.csv_img_key,
            csv_caption_key=config.data.csv_caption_key,
            csv_separator=config.data.csv_separator,
        )
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"--train-data: {error}" if config.data.train_data else str(error)) from error


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
    micro = config.data.micro_batch_size
    return [
        f"data: {trainer.source.name}, {len(trainer.source):,} pairs",
        f"model: {config.model.model}, {weights / 1e6:.1f} M parameters, {config.model.precision}, "
        f"{trainer.device}, {torch.get_num_threads()} threads",
        f"loss: {loss}, backend {trainer.backend}; batch {config.data.batch_size:,}"
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
        run=dataclasses.replace(config.run, val_frequency=0),
    )
    print(f"control: the same model on shuffled captions, {steps:,} steps")
    control = Trainer(config, model_config, build_source(config, model_config))
    control.train()
    return control.results


def draw(trainer: Trainer) -> dict[str, str]:
    """Draw the run's pictures into its folder; return file by title."""
    from fastclip.train import pictures

    folder, tests = trainer.folder, trainer.embedded
    if folder is None:
        return {}
    recalls = {
        f"{result.name}, R@{result.headline.removeprefix('R@')}": f"{prefix}/image_to_text_{result.headline}"
        for prefix, result in zip(trainer.prefixes, trainer.results, strict=True)
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
    print(f"report: {folder / 'report.md'}")
