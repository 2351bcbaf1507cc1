"""Say what a run is: typed dataclasses, one per concern, that go to YAML and back.

Names are open_clip's where open_clip has one. fastclip/train/command_line.py fills them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from fastclip.train.settings import ConfigError, Triple, fill

#: What `--precision` can be: the canonical names and open_clip's others for the same.
Precision = Literal[
    "auto", "fp32", "amp_bf16", "amp_fp16", "pure_bf16", "amp", "fp16", "amp_bfloat16", "bf16"
]


@dataclass(frozen=True)
class DataConfig:
    """Which pairs, and how many at a time."""

    train_data: str | None = None
    """Pairs: a folder of pictures with captions, `.tar` shards, a `.csv`, `.tsv` or `.parquet` file, a dataset on disk.
    Also precomputed embeddings, `emoji` or `shapes`. Without it: the demo."""
    val_data: str | None = None
    """Pairs to test on, all of them; of any type. Default: `--val-share` of the training pairs."""
    dataset_type: Literal[
        "auto", "webdataset", "csv", "parquet", "folder", "hf", "features", "emoji", "shapes"
    ] = "auto"
    """What lies at `--train-data`; auto finds out."""
    val_share: float = 0.05
    """Share of a user's own pairs that is kept for tests, at most 1,000 pairs."""
    image_key: str | None = None
    """Column of a table or a dataset with pictures or their files. Default: detected."""
    caption_key: str | None = None
    """Key in `.json` files, or column, with the captions; several with probabilities: `alt=0.3,recaption=0.7`.
    Default: detected."""
    csv_img_key: str | None = None
    """As `--image-key`."""
    csv_caption_key: str | None = None
    """Column of a table with the captions. Default: detected."""
    csv_separator: str | None = None
    """Separator of a .csv file's columns. Default: detected."""
    max_bad_share: float = 0.1
    """Share of unreadable pairs above which the run stops; below, they are skipped, counted, listed and replaced."""
    aug_scale: float = 0.9
    """Smallest share of a picture's area that a random crop keeps; 1 keeps as much as fits."""
    aug_flip: float = 0.0
    """Probability of a mirror image. Captions that say left and right then lie."""
    aug_color_jitter: float = 0.0
    """Brightness, contrast and saturation each change at random by up to this share."""
    aug_grayscale: float = 0.0
    """Probability of a grey picture."""
    batch_size: int = 64
    """Pairs per device and step; all devices' pairs are contrasted with each other."""
    accum_freq: int = 1
    """Times `--batch-size` pairs that a device brings to a step, encoded `--batch-size` at a time.
    No sum of small losses: every pair is contrasted with all pairs of the step, and the gradient is exact."""
    micro_batch_size: int | None = None
    """Pairs encoded at a time; fewer save memory at the price of a second forward pass.
    The gradient stays that of the whole batch. Default: all at once (with `--accum-freq`: `--batch-size`)."""
    workers: int = 4
    """Threads per device that prepare batches ahead of time (0: none)."""
    shuffle_captions: bool = False
    """Train the control: captions shuffled among the pictures. It must end at chance."""

    @property
    def rows_per_rank(self) -> int:
        """Pairs that one device brings to a step."""
        return self.batch_size * self.accum_freq

    @property
    def rows_at_a_time(self) -> int | None:
        """Pairs that are encoded at a time; None: all at once."""
        if self.micro_batch_size is None and self.accum_freq > 1:
            return self.batch_size
        return self.micro_batch_size


@dataclass(frozen=True)
class ModelConfig:
    """Which encoders, and in which arithmetic."""

    model: str = "ViT-B-32"
    """Name of a model preset; ViT-B/32 is ViT-B-32. With `--pretrained FOLDER` the default is what lies there."""
    pretrained: str | None = None
    """Weights to start from: a run of this program, OpenAI's or open_clip's file, a Hugging Face folder.
    A folder says what its model is; of a file `--model` has to."""
    precision: Precision = "auto"
    """auto: amp_bf16 on a GPU, fp32 on a CPU.
    amp_bf16: bfloat16 autocast. amp_fp16, amp: float16 autocast with loss scaling. pure_bf16: weights and state too."""
    force_image_size: int | None = None
    """Side of the pictures, in pixels, if it is not the model's; pretrained position embeddings are resampled."""
    force_patch_dropout: float | None = None
    """Share of a picture's patches that training leaves out, if it is not the model's; 0 for none."""
    image_mean: Triple | None = None
    """Mean of red, green and blue in [0, 1] that pictures are normalised with. Default: the model's."""
    image_std: Triple | None = None
    """Their standard deviation. Default: the model's."""
    lock_image: bool = False
    """Leave the image tower as it is, and train the text tower to it (LiT, with `--pretrained`)."""
    lock_text: bool = False
    """Leave the text tower as it is."""
    grad_checkpointing: bool = False
    """Keep only the inputs of transformer blocks and compute the rest again: less memory, a third more time."""
    torchcompile: bool = False
    """Compile the encoders with torch.compile."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "model", self.model.replace("/", "-")
        )  # as people write it, and open_clip takes it


@dataclass(frozen=True)
class LossConfig:
    """Which objective, on which kernels."""

    siglip: bool = False
    """Sigmoid loss in place of the softmax loss."""
    backend: str = "auto"
    """Kernels of the loss: auto, or one of fastclip.available_backends()."""
    loss_dist_impl: Literal["gather", "ring"] = "gather"
    """How texts get around the devices: gather (faster) or ring (less memory). Both are exact."""


@dataclass(frozen=True)
class OptimConfig:
    """How long and how fast to learn."""

    epochs: int = 32
    """Passes over the pairs, each in a fresh order."""
    epochs_cooldown: float | None = None
    """Epochs of cooldown at the end, with `--lr-scheduler const-cooldown`."""
    steps: int | None = None
    """Length of the run in steps, in place of `--epochs`."""
    lr: float = 5e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean."""
    beta2: float = 0.98
    """Adam's decay of the gradient's square; 0.999 by default for RN50."""
    eps: float = 1e-6
    """Added to Adam's denominator; 1e-8 by default for RN50."""
    wd: float = 0.2
    """Weight decay of matrices and filters; gains, biases, embeddings and the logit scale have none."""
    warmup: int | None = None
    """Steps of linear warm-up. Default: 10000, or a twentieth of a shorter run."""
    lr_scheduler: Literal["cosine", "const", "const-cooldown"] = "cosine"
    """Course of the learning rate after the warm-up."""
    lr_cooldown_end: float = 0.0
    """Learning rate at the end of a cooldown."""
    lr_cooldown_power: float = 1.0
    """Shape of a cooldown: (what is left of it) to this power; 1 is a straight line."""
    skip_scheduler: bool = False
    """Keep the learning rate at `--lr` from the first step to the last, without warm-up."""
    layer_decay: float | None = None
    """Share of the learning rate that a layer gets of what the layer above it gets, for fine-tuning (0.65 to 0.9)."""
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.9999; tests are then run on the average."""
    grad_clip_norm: float | None = None
    """Largest L2 norm of the whole gradient. Default: not clipped."""
    max_skipped_steps: int = 20
    """Steps in a row that may be skipped because loss or gradient are not finite; then the run ends."""


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
    """auto, cpu, cuda, cuda:1, …; under torchrun every process takes a GPU of its own."""
    fsdp: bool = False
    """Shard weights, gradients and Adam's state over the devices of a torchrun (FSDP2)."""
    dist_timeout: float = 30.0
    """Minutes that a device waits for another one before the run fails."""
    log_every_n_steps: int = 100
    """Steps between two lines of metrics."""
    save_frequency: int = 1
    """Epochs between two checkpoints (0: only at the end)."""
    save_every_n_steps: int = 0
    """Steps between two checkpoints, inside an epoch too (0: by epochs only)."""
    save_every_minutes: float = 0.0
    """Minutes between two checkpoints (0: by epochs and steps only)."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, at least 2."""
    val_frequency: int = 1
    """Epochs between two evaluations of the held-out tests (0: only at the end)."""
    zeroshot_data: str | None = None
    """A folder with a folder of pictures per class, classified by the classes' names during the run.
    open_clip's `--imagenet-val X` is `--zeroshot-data X --zeroshot-name imagenet`."""
    zeroshot_name: str | None = None
    """What its keys begin with, NAME-zeroshot-val-top1. Default: the folder's name."""
    zeroshot_classnames: str | None = None
    """A JSON file with the readable name of every folder of `--zeroshot-data`, `{"n01440764": "tench", …}`.
    Default: the folders' own names, underscores as spaces."""
    zeroshot_templates: str = "general"
    """Sentences around the class names, {} for the name: a set of fastclip.space.TEMPLATES, or a file of lines."""
    zeroshot_frequency: int = 2
    """Epochs between two zero-shot classifications of `--zeroshot-data` (0: only at the end)."""
    report_to: str = ""
    """Where metrics go beside metrics.jsonl: `tensorboard`, `wandb`, or both with a comma between them."""
    wandb_project_name: str | None = None
    """Project of Weights & Biases. Default: the environment variable WANDB_PROJECT, or `fastclip`."""
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
            "--accum-freq": (self.data.accum_freq, 1),
            "--micro-batch-size": (self.data.micro_batch_size, 1),
            "--workers": (self.data.workers, 0),
            "--epochs": (self.optim.epochs, 1),
            "--steps": (self.optim.steps, 1),
            "--epochs-cooldown": (self.optim.epochs_cooldown, 0),
            "--lr-cooldown-end": (self.optim.lr_cooldown_end, 0),
            "--max-skipped-steps": (self.optim.max_skipped_steps, 1),
            "--wd": (self.optim.wd, 0),
            "--warmup": (self.optim.warmup, 0),
            "--log-every-n-steps": (self.run.log_every_n_steps, 1),
            "--save-frequency": (self.run.save_frequency, 0),
            "--save-every-n-steps": (self.run.save_every_n_steps, 0),
            "--save-every-minutes": (self.run.save_every_minutes, 0),
            "--keep-checkpoints": (self.run.keep_checkpoints, 2),
            "--zeroshot-frequency": (self.run.zeroshot_frequency, 0),
            "--val-frequency": (self.run.val_frequency, 0),
            "--control-steps": (self.run.control_steps, 0),
            "--force-image-size": (self.model.force_image_size, 1),
        }
        for flag, (value, least) in at_least.items():
            if value is not None and not value >= least:
                raise ConfigError(f"{flag} must be at least {least:g}, got {value:g}")
        for flag, value in {
            "--lr": self.optim.lr,
            "--lr-cooldown-power": self.optim.lr_cooldown_power,
            "--layer-decay": self.optim.layer_decay,
            "--dist-timeout": self.run.dist_timeout,
            "--eps": self.optim.eps,
            "--grad-clip-norm": self.optim.grad_clip_norm,
        }.items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{flag} must be a positive number, got {value:g}")
        for flag, value in {
            "--beta1": self.optim.beta1,
            "--beta2": self.optim.beta2,
            "--ema": self.optim.ema,
            "--force-patch-dropout": self.model.force_patch_dropout,
        }.items():
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{flag} must lie in [0, 1), got {value:g}")
        for flag, value in {
            "--val-share": self.data.val_share,
            "--max-bad-share": self.data.max_bad_share,
            "--aug-scale": self.data.aug_scale,
            "--aug-flip": self.data.aug_flip,
            "--aug-color-jitter": self.data.aug_color_jitter,
            "--aug-grayscale": self.data.aug_grayscale,
        }.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{flag} must lie in [0, 1], got {value:g}")
        if self.model.image_std is not None and not min(self.model.image_std) > 0:
            raise ConfigError(f"--image-std must be positive numbers, got {self.model.image_std}")
        if self.optim.lr_scheduler == "const-cooldown" and self.optim.epochs_cooldown is None:
            raise ConfigError("--lr-scheduler const-cooldown needs --epochs-cooldown, the epochs it takes")
        if self.optim.layer_decay is not None and self.optim.layer_decay > 1:
            raise ConfigError(f"--layer-decay must be at most 1, got {self.optim.layer_decay:g}")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """Return the text of a file that `--config` reads."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: Any, base: Config | None = None, source: str = "the config") -> Config:
        """Build a config from `to_dict()`, or from a part of it.

        Args:
            values: settings by section and key.
            base: what keys have that are not given.
            source: what messages call the dict.

        Raises:
            ConfigError: an unknown section or key (one that is near is named), or a value of the wrong type.
        """
        base = cls() if base is None else base
        return dataclasses.replace(base, **fill(base, values, source))


def demo() -> Config:
    """Return the preset without `--train-data`: the emoji demo, sized for two CPU cores and five minutes."""
    return Config(
        data=DataConfig(batch_size=256, workers=1),
        model=ModelConfig(model="demo"),
        optim=OptimConfig(epochs=32, lr=2e-3, wd=0.1, grad_clip_norm=1.0),
        run=RunConfig(log_every_n_steps=10, save_frequency=8, val_frequency=8, control_steps=96),
    )
