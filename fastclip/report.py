"""`python -m fastclip.report RUN`: write the report of a run anew, of one that still goes on or was ended, too."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from fastclip.models import CLIPConfig
from fastclip.train import checkpoint, metrics
from fastclip.train.build import build_model_config, build_source
from fastclip.train.config import Config, ConfigError, RunConfig
from fastclip.train.loop import Trainer
from fastclip.train.report import Summary, write_report


def rewrite(run: Path, device: str = "auto") -> Path:
    """Measure a run's newest checkpoint that is whole, and write report.html into its folder; return its path.

    The control, and what else only the run itself could know, are taken from its results.json if it ended there.

    Raises:
        ConfigError: no run, no checkpoint, or its data cannot be opened.
    """
    settings = run / "config.json"
    if not settings.is_file():
        raise ConfigError(f"{run} is no folder of a run: it has no config.json")
    config = Config.from_dict(json.loads(settings.read_text()), source=str(settings))
    path = checkpoint.find(RunConfig(resume=str(run)))
    trainer = _examined(config, checkpoint.load(path), device)
    exams = trainer.exams
    title = f"{trainer.source.name}: {config.model.model}, {trainer.step:,} steps"
    title = f"Control: {title}" if config.data.shuffle_captions else title
    summary = _remembered(run)
    if summary is None or summary.title != title:
        summary = Summary(
            title=title,
            results=[],
            control=None,
            control_label="",
            facts=_facts(run, trainer, path),
            pictures={},
            credits=getattr(trainer.source, "credits", None),
            skipped=dict(trainer.skipped),
            skipped_steps=trainer.skipped_steps,
        )
    results = exams.results + ([] if exams.classified is None else [exams.classified])
    summary = dataclasses.replace(summary, results=results)
    return write_report(summary, run, tests=exams.embedded, config=config.to_dict())


def _examined(config: Config, saved: checkpoint.Checkpoint, device: str) -> Trainer:
    """Return the trainer as it was when it saved, after its model has sat the exams."""
    if config.model.pretrained is None:
        model_config = build_model_config(config)
    else:  # it need no longer be there
        model_config = CLIPConfig.from_dict(saved.model_config)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, device=device))
    source = build_source(config, model_config)
    trainer = Trainer(config, model_config, source, resumed=True, quiet=True)
    trainer.resume(saved)
    trainer.exams.retrieval()
    trainer.exams.zeroshot()
    return trainer


def _remembered(run: Path) -> Summary | None:
    path = run / "results.json"
    return Summary.from_json(path.read_text()) if path.is_file() else None


def _facts(run: Path, trainer: Trainer, path: Path) -> list[str]:
    lines = metrics.read(run / "metrics.jsonl")
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    facts = [
        f"data: {trainer.source.name}, {len(trainer.source):,} pairs",
        f"model: {weights / 1e6:.1f} M parameters, measured at checkpoint {path.name}",
    ]
    if lines:
        facts.append(f"metrics up to step {lines[-1]['step']:,}")
    return facts


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m fastclip.report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …; default %(default)s")
    options = parser.parse_args(argv)
    try:
        print(rewrite(options.run, options.device))
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
