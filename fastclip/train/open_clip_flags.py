"""Flags of open_clip's trainer that are none of ours: each is translated, taken with a warning, or refused.

Flags that both programs have, under one name and with one meaning, are fields of fastclip/train/config.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fastclip.train.settings import ConfigError

#: Switches that change nothing, and what happens in place of what they ask for.
SWITCHES = {
    "local-loss": "every logit is computed once over all devices, always",
    "gather-with-grad": "gradients are those of the whole batch, always",
    "save-most-recent": "checkpoints can always be resumed; see --save-every-n-steps",
    "delete-previous-checkpoint": "old checkpoints go by themselves; see --keep-checkpoints",
    "dataset-resampled": "nothing is drawn twice; every epoch is all pairs in a fresh order",
    "debug": "--log-every-n-steps 1 says something of every step",
    "log-local": "the first process logs for all",
    "copy-codebase": "no code is copied; report.html names the version that ran",
    "ddp-static-graph": "gradients are averaged after the backward pass, without DDP",
    "force-custom-text": "it decides how open_clip names weights; both layouts are read by --pretrained",
    "lock-image-freeze-bn-stats": "a locked tower stays as it is, statistics of batch norms included",
    "lock-text-freeze-layer-norm": "a locked tower stays as it is, layer norms included",
}

#: Flags with a value that change nothing, and what happens in place of what they ask for.
VALUES = {
    "train-num-samples": "pairs are counted, and an epoch is all of them; --steps sets another length of the run",
    "val-num-samples": "pairs are counted, and tests are over all of them",
    "cache-dir": "nothing is downloaded; --pretrained is a file or folder",
    "dist-backend": "the device decides: NCCL on GPUs, gloo on CPUs",
    "dist-url": "torchrun says where processes meet; see its --rdzv-endpoint",
    "wandb-notes": "Weights & Biases takes notes from the environment variable WANDB_NOTES",
}

#: Flags that are taken with the one value that is so here, and what to do if another one is wanted.
FIXED = {
    "opt": ("adamw", "the optimizer is AdamW; leave --opt out"),
    "image-interpolation": ("bicubic", "pictures are resampled bicubically; leave --image-interpolation out"),
    "image-resize-mode": (
        "shortest",
        "pictures are scaled by their shorter side and cropped; leave --image-resize-mode out",
    ),
    "lock-image-unlocked-groups": (
        "0",
        "a tower is locked as a whole; --layer-decay 0.75 in place of --lock-image lets upper layers learn faster",
    ),
    "lock-text-unlocked-layers": (
        "0",
        "a tower is locked as a whole; --layer-decay 0.75 in place of --lock-text lets upper layers learn faster",
    ),
}

#: Folders of classes, which are all `--zeroshot-data` here, and what open_clip's keys for them begin with.
CLASSES = {"imagenet-val": "imagenet", "imagenet-v2": "imagenetv2"}

#: Flags that are refused: why, and what to do.
REFUSED = {
    "train-data-upsampling-factors": "pairs are not drawn with replacement, each is seen once in an epoch; choose by "
    "--train-data how many shards of a source there are",
    "momentum": "it belongs to timm's optimizers, and the optimizer here is AdamW; see --beta1",
    "use-bn-sync": "batch norms normalise with the pairs that a device encodes at a time; leave it out",
    "pretrained-image": "nothing is downloaded; --pretrained takes a file or folder with both towers",
    "aug-cfg": "write --aug-scale 0.9 for scale='(0.9,1.0)', --aug-color-jitter 0.4 for color_jitter=0.4, "
    "--aug-grayscale 0.2 for gray_scale_prob=0.2; --aug-flip mirrors",
    "force-context-length": "the length of texts is the model's; leave it out, or choose another --model",
    "force-quick-gelu": "the model's name says it; choose --model NAME-quickgelu, such as ViT-B-32-quickgelu",
    "torchscript": "training runs eagerly, or compiled with --torchcompile",
    "trace": "it serves inference; python -m fastclip.export writes ONNX files",
    "horovod": "several devices work together under torchrun --nproc-per-node N -m -- fastclip.train",
    "no-set-device-rank": "under torchrun every process takes the GPU of its LOCAL_RANK; leave all GPUs visible to all",
    "coca-caption-loss-weight": "there is no CoCa",
    "coca-contrastive-loss-weight": "there is no CoCa",
    "remote-sync": "a run writes to --logs only; copy that folder with rclone or aws s3 sync",
    "remote-sync-frequency": "a run writes to --logs only; copy that folder with rclone or aws s3 sync",
    "remote-sync-protocol": "a run writes to --logs only; copy that folder with rclone or aws s3 sync",
    "distill-model": "the program does not distil; fastclip.distill_loss does in a trainer of your own",
    "distill-pretrained": "the program does not distil; fastclip.distill_loss does in a trainer of your own",
    "use-bnb-linear": "there are no 8-bit layers; --precision pure_bf16 halves the memory of weights",
}

#: Values of flags that both programs have, refused: why, and what to do.
REFUSED_VALUES = {
    (
        "precision",
        "pure_fp16",
    ): "float16 weights lose their updates; choose amp_fp16, or pure_bf16 for small memory",
    ("dataset-type", "synthetic"): "choose --train-data shapes, pictures that are drawn as they are needed",
    ("logs", "None"): "a run always has a folder; --logs names the one it is made in",
}

#: Values of flags that both programs have: ours for theirs.
RENAMED_VALUES = {("loss-dist-impl", way): "ring" for way in ("bidir", "shift", "reduce")}


def flag_name(token: str) -> str:
    """Return the flag's name in a token such as --batch_size=64: batch-size; "" if the token is no flag."""
    return token.removeprefix("--").split("=", 1)[0].replace("_", "-") if token.startswith("--") else ""


def translate(argv: Sequence[str]) -> list[str]:
    """Return the command line in our flags; say what has no effect.

    Raises:
        ConfigError: a flag or value of open_clip's that is not here; the message says why, and what to do.
    """
    given = {flag_name(token) for token in argv}
    ours, rest = [], list(argv)
    while rest:
        token = rest.pop(0)
        name = flag_name(token)
        if name in REFUSED:
            raise ConfigError(f"open_clip's --{name} is not here: {REFUSED[name]}")
        if name in SWITCHES:
            _say(f"--{name} changes nothing: {SWITCHES[name]}")
        elif name in VALUES:
            _say(f"--{name} {_take(token, rest)} changes nothing: {VALUES[name]}")
        elif name in FIXED:
            value, why = _take(token, rest), FIXED[name]
            if value != why[0]:
                raise ConfigError(f"open_clip's --{name} {value} is not here: {why[1]}")
        elif name in CLASSES:
            ours += _classes(name, _take(token, rest), given)
        elif name == "force-image-size":
            ours += [f"--{name}", _side(_take(token, rest), rest)]
        elif name in {flag for flag, _ in (*REFUSED_VALUES, *RENAMED_VALUES)} | {"pretrained"}:
            ours += _with_value(name, _take(token, rest))
        else:
            ours.append(token)
    return ours


def _take(token: str, rest: list[str]) -> str:
    """Return a flag's value, from its own token or the next one, which is then taken from the rest."""
    _, is_joined, joined = token.partition("=")
    if is_joined:
        return joined
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"{token} needs a value")
    return rest.pop(0)


def _classes(name: str, value: str, given: set[str]) -> list[str]:
    if "zeroshot-data" in given:
        raise ConfigError(f"--{name} and --zeroshot-data are one setting; give it once")
    if name == "imagenet-v2" and "imagenet-val" in given:
        _say(
            f"--imagenet-v2 {value} changes nothing: one folder is classified during a run, that of --imagenet-val; "
            "python -m fastclip.zeroshot measures others"
        )
        return []
    if "zeroshot-classnames" not in given:
        _say(
            f"--{name} calls classes by the names of their folders; where those are codes such as n01440764, "
            "--zeroshot-classnames FILE.json says what they mean"
        )
    ours = ["--zeroshot-data", value]
    return ours if "zeroshot-name" in given else [*ours, "--zeroshot-name", CLASSES[name]]


def _side(height: str, rest: list[str]) -> str:
    """Return the side of square pictures; open_clip also takes height and width."""
    if rest and rest[0].isdecimal():
        width = rest.pop(0)
        if width != height:
            raise ConfigError(
                f"--force-image-size {height} {width}: pictures are square here; give one number"
            )
    return height


def _with_value(name: str, value: str) -> list[str]:
    """Return a flag that both programs have, with its value here."""
    if (name, value) in REFUSED_VALUES:
        raise ConfigError(f"open_clip's --{name} {value} is not here: {REFUSED_VALUES[name, value]}")
    if (name, value) == ("pretrained", ""):  # open_clip's default, which scripts pass on
        return []
    if (name, value) in RENAMED_VALUES:
        _say(f"--{name} {value} is {RENAMED_VALUES[name, value]} here; the value is the same")
        value = RENAMED_VALUES[name, value]
    return [f"--{name}", value]


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)
