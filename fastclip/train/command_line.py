"""Fill a run's config from the command line, a file and a checkpoint.

Flags are flat and carry open_clip's names where open_clip has one. A setting comes from the last of these that has it:

    the demo preset (no `--train-data` anywhere), or open_clip's defaults; some of both depend on the model
    the checkpoint of `--resume`
    the file of `--config`
    flags
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastclip.train.config import Config, ConfigError, demo
from fastclip.train.open_clip_flags import flag_name, translate
from fastclip.train.settings import suggest

#: Flags that other programs have, and what they are here.
ELSEWHERE = {
    "weight-decay": "wd",
    "learning-rate": "lr",
    "num-workers": "workers",
    "output-dir": "logs",
    "gradient-accumulation-steps": "accum-freq",
    "max-grad-norm": "grad-clip-norm",
}


@dataclass(frozen=True)
class Invocation:
    """What the command line asks for."""

    config: Config
    print_config: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class CommandLine(Config):
    # tyro shows this text above the flags.
    """Train a CLIP: an image and a text encoder that share one space.

    Without flags this is the demo: emoji art and its Unicode names, a few minutes on two CPU cores. Several devices:
    torchrun --nproc-per-node N -m -- fastclip.train ...

    Defaults shown below are the demo's unless --train-data is on this command line, too: from then on they are
    open_clip's (batch size 64, learning rate 5e-4, model ViT-B-32, ...). `--train-data X --help` shows those.
    """

    config: str | None = None
    """A file of settings, such as the run.yaml beside a run's checkpoints. Flags win over it."""
    print_config: bool = False
    """Print all settings as such a file, and do nothing."""
    dry_run: bool = False
    """Build everything, take two steps, say how long the run will take and how much memory, and do nothing."""


def parse(argv: Sequence[str]) -> Invocation:
    """Read command-line arguments.

    Raises:
        ConfigError: an unknown flag or key (one that is near is named) or a value that cannot work.
        SystemExit: after `--help`, or a value of the wrong type, which tyro explains.
    """
    argv = translate(argv)
    _refuse_unknown_flags(argv)
    file = _value_of("config", argv)
    settings = {} if file is None else _read_file(Path(file))
    source = f"--config {file}"
    base = Config() if _trains_own_data(argv, settings) else demo()
    told = _tyro(Config.from_dict(settings, base, source), argv)
    saved = None if told.run.resume is None else _of_checkpoint(told)
    if saved is not None:
        told = _tyro(Config.from_dict(settings, saved, source), argv, resume=saved.run.resume)
    else:
        suited = _suited(base, told, is_named=_names_model(argv, settings))
        if suited != base:
            told = _tyro(Config.from_dict(settings, suited, source), argv)
    parts = {section.name: getattr(told, section.name) for section in fields(Config)}
    return Invocation(Config(**parts), told.print_config, told.dry_run)


def flags() -> list[str]:
    """Return every flag of the program, without the leading dashes."""
    names = ["help"]
    owners = [*get_type_hints(Config).values(), CommandLine]
    own = {field.name for field in fields(CommandLine)} - {field.name for field in fields(Config)}
    for owner in owners:
        hints = get_type_hints(owner)
        for field in fields(owner):
            if owner is CommandLine and field.name not in own:
                continue
            flag = field.name.replace("_", "-")
            is_switch = bool in (hints[field.name], *get_args(hints[field.name]))
            names += [flag, f"no-{flag}"] if is_switch else [flag]
    return names


def _tyro(default: Config, argv: Sequence[str], resume: str | None = None) -> CommandLine:
    import tyro

    parts = {section.name: getattr(default, section.name) for section in fields(Config)}
    told = tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(CommandLine),
        default=CommandLine(**parts),
        args=list(argv),
        prog="python -m fastclip.train",
    )
    if resume is None:
        return told
    return dataclasses.replace(told, run=dataclasses.replace(told.run, resume=resume))


def _of_checkpoint(told: Config) -> Config | None:
    """Return the config of the run to resume, with the checkpoint's own path; None where none was saved yet."""
    from fastclip.train import checkpoint

    named = Path(told.run.resume or "")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and named.name.startswith("step_") and not named.exists():
        # torchrun starts the same command again, and the checkpoint it names may have made room for later ones.
        told = dataclasses.replace(told, run=dataclasses.replace(told.run, resume=str(named.parent)))
    try:
        path = checkpoint.find(told.run)
    except checkpoint.NoCheckpoint:
        if told.run.resume != "latest":
            raise
        return None
    saved = Config.from_dict(checkpoint.read_config(path), source=str(path))
    place: dict[str, Any] = {"resume": str(path)}
    # The run goes on where its checkpoint lies, whatever folder it was started from.
    if path.parent.name == "checkpoints":
        folder = path.absolute().parents[1]
        place |= {"logs": str(folder.parent), "name": folder.name}
    return dataclasses.replace(saved, run=dataclasses.replace(saved.run, **place))


def _read_file(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is no YAML: {str(error).splitlines()[0]}") from error


def _trains_own_data(argv: Sequence[str], settings: Any) -> bool:
    data = settings.get("data") if isinstance(settings, dict) else None
    in_file = isinstance(data, dict) and data.get("train_data") is not None
    return in_file or any(flag_name(token) == "train-data" for token in argv)


def _names_model(argv: Sequence[str], settings: Any) -> bool:
    model = settings.get("model") if isinstance(settings, dict) else None
    return _value_of("model", argv) is not None or (isinstance(model, dict) and "model" in model)


def _suited(base: Config, told: Config, *, is_named: bool) -> Config:
    """Return the defaults for the model that is asked for: its name, where `--pretrained` says it, and Adam's."""
    model, optim = base.model, base.optim
    named = told.model.model
    if not is_named and told.model.pretrained is not None and Path(told.model.pretrained).is_dir():
        from fastclip.train.build import name_of_pretrained  # imports torch

        named = name_of_pretrained(told)
        model = dataclasses.replace(model, model=named)
    # open_clip keeps Adam's usual values for what is no vision transformer: here, OpenAI's ResNets.
    if named.startswith("RN"):
        optim = dataclasses.replace(optim, beta2=0.999, eps=1e-8)
    return dataclasses.replace(base, model=model, optim=optim)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Return the value of a flag, the last one given."""
    value = None
    for position, token in enumerate(argv):
        if flag_name(token) == flag:
            _, is_joined, joined = token.partition("=")
            value = joined if is_joined else next(iter(argv[position + 1 :]), None)
    return value


def _refuse_unknown_flags(argv: Sequence[str]) -> None:
    known = flags()
    for name in map(flag_name, argv):
        if not name or name in known:
            continue
        meant = (
            f"; did you mean --{ELSEWHERE[name]}?" if name in ELSEWHERE else suggest(name, known, prefix="--")
        )
        raise ConfigError(f"unknown flag --{name}{meant} (--help lists all flags)")
