"""Say what a run is: typed dataclasses, one per concern, and the command line that fills them.

Flags are flat and carry open_clip's names where open_clip has one. Defaults come from one of three places:
the demo preset (no `--train-data`), open_clip's defaults (with it), or the checkpoint named by `--resume`;
flags given on the command line win over all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints


class ConfigError(Exception):
    """A setting that cannot work; the message names the flag, what came and the remedy."""


@dataclass(frozen=True)
class DataConfig:
    """Which pairs, and how many at a time."""

    train_data: str | None = None
    """A folder of pictures with captions, a .csv or .tsv file, `emoji` or `shapes`. Without it: the demo."""
    csv_img_key: str | None = None
    """Column of a table that names the picture files. Default: detected."""
    csv_caption_key: str | None = None
    """Column of a table with the captions. Default: detected."""
    csv_separator: str | None = None
    """Separator of a table's columns. Default: detected."""
    batch_size: int = 64
    """Pairs that are contrasted with each other in one step."""
    micro_batch_size: int | None = None
    """Pairs encoded at a time; smaller saves memory at the price of a second forward pass. The gradient stays
    that of the whole batch. Default: the whole batch at once."""
    workers: int = 1
    """Threads that prepare batches ahead of time (0: none)."""
    shuffle_captions: bool = False
    """Train the control: captions shuffled among the pictures. It must end at chance."""


@dataclass(frozen=True)
class ModelConfig:
    """Which encoders, and in which arithmetic."""

    model: str = "demo"
    """Name of a model preset."""
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    """fp32, or bfloat16 autocast for the encoders."""


@dataclass(frozen=True)
class LossConfig:
    """Which objective, on which kernels."""

    siglip: bool = False
    """Sigmoid loss in place of the softmax loss."""
    backend: str = "auto"
    """Kernels of the loss: auto, or one of fastclip.available_backends()."""


@dataclass(frozen=True)
class OptimConfig:
    """How long and how fast to learn."""

    epochs: int = 32
    """Passes over the pairs, each in a fresh order."""
    steps: int | None = None
    """Length of the run in steps, in place of `--epochs`."""
    lr: float = 5e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean."""
    beta2: float = 0.98
    """Adam's decay of the gradient's square."""
    eps: float = 1e-6
    """Added to Adam's denominator."""
    wd: float = 0.2
    """Weight decay of matrices and filters; gains, biases, embeddings and the logit scale have none."""
    warmup: int | None = None
    """Steps of linear warm-up. Default: 10000, or a twentieth of a shorter run."""
    lr_scheduler: Literal["cosine", "const"] = "cosine"
    """Course of the learning rate after the warm-up."""
    grad_clip_norm: float | None = None
    """Largest L2 norm of the whole gradient. Default: not clipped."""


@dataclass(frozen=True)
class RunConfig:
    """Where results go and what is watched."""

    logs: str = "./logs"
    """Folder of all runs."""
    name: str | None = None
    """Folder of this run inside `--logs`. Default: the time, model, batch size and learning rate."""
    resume: str | None = None
    """A checkpoint folder to continue from, or `latest` for the newest of run `--name`."""
    seed: int = 0
    """Seed of the initial weights, the order of pairs, captions and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    log_every_n_steps: int = 100
    """Steps between two lines of metrics."""
    save_frequency: int = 1
    """Epochs between two checkpoints (0: only at the end)."""
    save_every_n_steps: int = 0
    """Steps between two checkpoints, inside an epoch too (0: by epochs only)."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    val_frequency: int = 1
    """Epochs between two evaluations of the held-out tests (0: only at the end)."""
    control_steps: int = 0
    """Steps of a short second run with shuffled captions, shown beside the results (0: none)."""
    pictures: bool = True
    """Draw curves, retrieval sheet, similarity map and the map of the space at the end."""


@dataclass(frozen=True)
class Config:
    """Train a CLIP: an image and a text encoder that share one space.

    Without flags this is the demo: emoji art and its Unicode names, a few minutes on two CPU cores.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        at_least: dict[str, tuple[float | None, float]] = {
            "--batch-size": (self.data.batch_size, 1),
            "--micro-batch-size": (self.data.micro_batch_size, 1),
            "--workers": (self.data.workers, 0),
            "--epochs": (self.optim.epochs, 1),
            "--steps": (self.optim.steps, 1),
            "--wd": (self.optim.wd, 0),
            "--warmup": (self.optim.warmup, 0),
            "--log-every-n-steps": (self.run.log_every_n_steps, 1),
            "--save-frequency": (self.run.save_frequency, 0),
            "--save-every-n-steps": (self.run.save_every_n_steps, 0),
            "--keep-checkpoints": (self.run.keep_checkpoints, 1),
            "--val-frequency": (self.run.val_frequency, 0),
            "--control-steps": (self.run.control_steps, 0),
        }
        for flag, (value, least) in at_least.items():
            if value is not None and not value >= least:
                raise ConfigError(f"{flag} must be at least {least:g}, got {value:g}")
        for flag, value in {
            "--lr": self.optim.lr,
            "--eps": self.optim.eps,
            "--grad-clip-norm": self.optim.grad_clip_norm,
        }.items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{flag} must be a positive number, got {value:g}")
        for flag, value in {"--beta1": self.optim.beta1, "--beta2": self.optim.beta2}.items():
            if not 0 <= value < 1:
                raise ConfigError(f"{flag} must lie in [0, 1), got {value:g}")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Config:
        """Rebuild a config from `to_dict()`; an unknown key is an error that suggests the nearest one."""
        concerns = get_type_hints(cls)
        parts = {}
        for concern, settings in values.items():
            if concern not in concerns:
                raise ConfigError(f"unknown section {concern!r} in the config; {_suggest(concern, concerns)}")
            known = {f.name for f in dataclasses.fields(concerns[concern])}
            for key in settings:
                if key not in known:
                    raise ConfigError(f"unknown key {concern}.{key} in the config; {_suggest(key, known)}")
            parts[concern] = concerns[concern](**settings)
        return cls(**parts)


def demo() -> Config:
    """Return the preset without `--train-data`: the emoji demo, sized for two CPU cores and five minutes."""
    return Config(
        data=DataConfig(batch_size=256),
        model=ModelConfig(model="demo"),
        optim=OptimConfig(epochs=32, lr=2e-3, wd=0.1, grad_clip_norm=1.0),
        run=RunConfig(log_every_n_steps=10, save_frequency=8, val_frequency=8, control_steps=96),
    )


def parse(argv: Sequence[str]) -> Config:
    """Build the config from command-line arguments.

    Raises:
        ConfigError: an unknown flag (the nearest known one is named) or a value that cannot work.
        SystemExit: after `--help`, or a value of the wrong type, which tyro explains.
    """
    import tyro

    _refuse_unknown_flags(argv)
    given = {_flag_name(token) for token in argv if token.startswith("--")}
    default = Config() if "train-data" in given else demo()

    def read(default: Config) -> Config:
        return tyro.cli(
            tyro.conf.configure(tyro.conf.OmitArgPrefixes)(Config),
            default=default,
            args=list(argv),
            prog="python -m fastclip.train",
        )

    config = read(default)
    if config.run.resume is not None:
        from fastclip.train import checkpoint

        path = checkpoint.find(config.run)
        saved = Config.from_dict(checkpoint.load(path).config)
        # The run goes on where its checkpoint lies, whatever folder it was started from.
        if path.parent.name == "checkpoints":
            folder = path.absolute().parents[1]
            place = dataclasses.replace(saved.run, logs=str(folder.parent), name=folder.name)
            saved = dataclasses.replace(saved, run=place)
        config = read(saved)
    return config


def flags() -> list[str]:
    """Return every flag of the program, without the leading dashes."""
    names = ["help"]
    for concern in get_type_hints(Config).values():
        hints = get_type_hints(concern)
        for f in dataclasses.fields(concern):
            flag = f.name.replace("_", "-")
            names += [flag, f"no-{flag}"] if bool in (hints[f.name], *get_args(hints[f.name])) else [flag]
    return names


def _flag_name(token: str) -> str:
    return token.removeprefix("--").split("=", 1)[0].replace("_", "-")


def _refuse_unknown_flags(argv: Sequence[str]) -> None:
    known = flags()
    for token in argv:
        if token.startswith("--") and _flag_name(token) not in known:
            nearest = _suggest(_flag_name(token), known, prefix="--")
            raise ConfigError(f"unknown flag --{_flag_name(token)}; {nearest} (--help lists all flags)")


def _suggest(word: str, known: Any, prefix: str = "") -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
    return f"did you mean {prefix}{nearest}?"
