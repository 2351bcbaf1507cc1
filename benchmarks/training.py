"""Time a step of `python -m fastclip.train` against one of open_clip's own trainer: same model, batch, precision, data.

    python -m benchmarks training
    python -m benchmarks training --model ViT-B-32 --batch-size 16 --captions full

Both trainers start from the same weights, and both must have the same loss after three steps. Theirs is
`open_clip_train.train.train_one_epoch` as it is, given its batch as its loader would: normalised pictures and token
ids. Ours has to normalise and to tokenise within the step. They take turns in one process, of the environment that
`make openclip` prepares.

Captions are of drawn scenes, a dozen words each, as most captions on the web are; "full" ones fill all 77 tokens, so
that nothing is gained by not encoding what comes after a caption's end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, report, torchvision_stub
from benchmarks.report import duration, percent, say
from fastclip.models import CLIP, PRESETS, CLIPConfig, TextConfig, VisionConfig

ROOT = Path(__file__).parents[1]
OPEN_CLIP = ROOT / ".venv-openclip" / "bin" / "python"

#: A model between the demo's and OpenAI's: on two cores a step of 128 pairs takes a second or two.
SMALL = CLIPConfig(VisionConfig(64, 8, 256, 6, 4), TextConfig(256, 4, 4), 256, "gelu")

#: Steps from the same weights after which both must have the same loss.
SAME_STEPS = 3
LR = 1e-4


@dataclass(frozen=True)
class Case:
    """What both trainers are given."""

    model: str
    batch: int
    captions: str = "scenes"  #: or "full"
    precision: str = "fp32"


CASES = (Case("small", 128), Case("small", 128, "full"), Case("ViT-B-32", 16))
QUICK = (Case("small", 32),)


@dataclass(frozen=True)
class Trainers:
    """A step of either trainer on one batch, and what its loss was."""

    ours: Callable[[], float]
    theirs: Callable[[], float]
    loss: Callable[[], None]  #: our loss alone, forward and backward, on features of the batch's shape


def prepare(case: Case) -> Trainers:
    """Build both trainers on the same weights and pairs. (Needs open_clip.)"""
    images, captions = _pairs(case)
    trainer = _our_trainer(case)
    model = trainer.model
    labels = torch.arange(case.batch)
    pairs = SimpleNamespace(images=images, captions=captions, labels=labels, text_features=None)
    theirs = _their_step(
        case, model, model.preprocess(images), trainer.tokenizer(captions, model.context_length)
    )
    x, y = (torch.randn(case.batch, model.config.embed_dim, requires_grad=True) for _ in range(2))
    return Trainers(
        ours=lambda: trainer.take_step(trainer.inputs(pairs), LR).loss,
        theirs=theirs,
        loss=lambda: trainer.take_step._loss(x, y, labels).backward(),
    )


def _model_config(name: str) -> CLIPConfig:
    return SMALL if name == "small" else PRESETS[name]


def _pairs(case: Case) -> tuple[Tensor, list[str]]:
    """Return uint8 pictures (B, 3, S, S) and as many different captions."""
    from fastclip.data.shapes import ShapesSource

    source = ShapesSource(_model_config(case.model).vision.image_size)
    seen: dict[str, Tensor] = {}
    for start in range(0, len(source), case.batch):
        pairs = source.fetch(range(start, start + case.batch), seed=0, epoch=0)
        for image, caption in zip(pairs.images, pairs.captions, strict=True):
            seen.setdefault(caption if case.captions == "scenes" else f"{len(seen)} {caption * 9}", image)
        if len(seen) >= case.batch:
            break
    return torch.stack(list(seen.values())[: case.batch]), list(seen)[: case.batch]


def _our_trainer(case: Case) -> Any:
    from fastclip.data.shapes import ShapesSource
    from fastclip.train.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
    from fastclip.train.loop import Trainer

    config = Config(
        data=DataConfig(batch_size=case.batch, workers=0),
        model=ModelConfig(precision=case.precision),  # type: ignore[arg-type]
        optim=OptimConfig(lr=LR, wd=0.0, warmup=0),
        run=RunConfig(device="cpu"),
    )
    model_config = _model_config(case.model)
    source = ShapesSource(model_config.vision.image_size, length=case.batch)
    return Trainer(config, model_config, source, quiet=True)


def _their_step(case: Case, model: CLIP, images: Tensor, tokens: Tensor) -> Callable[[], float]:
    """Return a step of open_clip's trainer on a copy of our weights."""
    models, losses, train_one_epoch = _open_clip()
    config = model.config
    if not isinstance(config.vision, VisionConfig):
        raise ValueError(f"--model {case.model} is no vision transformer; its twin is not built here")
    vision = models.CLIPVisionCfg(
        layers=config.vision.layers,
        width=config.vision.width,
        head_width=config.vision.width // config.vision.heads,
        patch_size=config.vision.patch_size,
        image_size=config.vision.image_size,
    )
    text = models.CLIPTextCfg(width=config.text.width, heads=config.text.heads, layers=config.text.layers)
    twin = models.CLIP(config.embed_dim, vision, text, output_dict=True)
    twin.load_state_dict(model.state_dict())
    # As its main.py builds it. (Without decay: the two trainers disagree on what should have any.)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    loss = _Listening(losses.ClipLoss(cache_labels=True))
    arguments = SimpleNamespace(
        device="cpu", precision=case.precision, distill=False, accum_freq=1, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, rank=0, local_rank=0, log_local=False, log_every_n_steps=100, batch_size=case.batch,
        world_size=1, wandb=False,
    )  # fmt: skip
    loader = _Loader([(images, tokens)])
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}

    def step() -> float:
        train_one_epoch(twin, data, loss, 0, optimizer, None, None, None, arguments)
        return loss.heard

    return step


class _Loader(list[tuple[Tensor, Tensor]]):
    """One batch, with the attributes of open_clip's loaders."""

    num_batches = 1

    @property
    def num_samples(self) -> int:
        return len(self[0][0])


class _Listening(nn.Module):
    """Their loss, remembering its last value."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.heard = loss, 0.0

    def forward(self, *features: Tensor, **options: Any) -> Any:
        losses = self.loss(*features, **options)
        self.heard = sum(loss.item() for loss in losses.values())
        return losses


def _open_clip() -> tuple[Any, Any, Any]:
    torchvision_stub.prepare()
    modules = [import_module(f"open_clip{name}") for name in (".model", ".loss", "_train.train")]
    logging.disable()  # its line of progress, which ours prints elsewhere
    return modules[0], modules[1], modules[2].train_one_epoch


def measure_case(case: Case, seconds: float) -> dict[str, Any]:
    """Return a row: seconds of either step, theirs over ours, and how far their losses are apart."""
    trainers = prepare(case)
    for _ in range(SAME_STEPS):
        losses = trainers.ours(), trainers.theirs()
    apart = abs(losses[0] - losses[1])
    row: dict[str, Any] = {**asdict(case), "threads": torch.get_num_threads(), "losses_apart": apart}
    if not apart < (1e-3 if case.precision == "fp32" else 5e-2):
        return {**row, "failure": f"not the same training: losses {losses[0]:.5f} and {losses[1]:.5f}"}
    steps: dict[str, measure.Step] = {
        "theirs": lambda i: trainers.theirs(),
        "ours": lambda i: trainers.ours(),
        "loss": lambda i: trainers.loss(),
    }
    timings = measure.in_turns(steps, seconds=seconds)
    if broken := next((timing.failure for timing in timings.values() if timing.failure), None):
        return {**row, "failure": broken}
    return {
        **row,
        "turns": len(timings["ours"].seconds),
        "theirs_seconds": timings["theirs"].median,
        "ours_seconds": timings["ours"].median,
        "spread": timings["ours"].spread,
        "speedup": timings["theirs"].over(timings["ours"]),
        "loss_share": timings["loss"].over(timings["ours"]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for a terminal or for Markdown."""
    lines = [
        "| model | batch | captions | precision | step, open_clip | fastclip | | in the loss |",
        "|---|--:|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        start = f"| {row['model']} | {row['batch']:,} | {row['captions']} | {row['precision']} | "
        if "failure" in row:
            lines.append(f"{start}{row['failure']} | | | |")
            continue
        times = (
            f"{duration(row['theirs_seconds'])} | {duration(row['ours_seconds'])} | {row['speedup']:.2f} × | "
        )
        lines.append(f"{start}{times}{percent(row['loss_share'])} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, print a table and write the numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="small, or a preset; default: several cases")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="with --model; default %(default)s"
    )
    parser.add_argument("--captions", choices=("scenes", "full"), default="scenes", help="with --model")
    parser.add_argument("--precision", choices=("fp32", "amp_bf16"), default="fp32", help="with --model")
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="to spend on each case; default %(default)s"
    )
    parser.add_argument(
        "--threads", type=int, help="of torch and of the C++ kernels; default: torch's own choice"
    )
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder for results")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None:
        case, seconds, threads = json.loads(options.case)
        torch.set_num_threads(threads)
        print(json.dumps(measure_case(Case(**case), seconds)))
        return 0
    if not OPEN_CLIP.is_file():
        say(f"{OPEN_CLIP.relative_to(ROOT)} is missing: make openclip")
        return 1
    cases: tuple[Case, ...] = QUICK if options.quick else CASES
    if options.model is not None:
        cases = (Case(options.model, options.batch_size, options.captions, options.precision),)
    threads = options.threads or torch.get_num_threads()
    made_by = report.environment()
    rows = []
    for case in cases:
        say(f"measuring {case.model}, {case.batch} pairs, {case.captions} captions, {case.precision}")
        rows.append(_in_open_clips_environment(case, options.seconds, threads))
    print(table(rows))
    document = {"command": report.command("training", arguments), "threads": threads, **made_by, "rows": rows}
    say(f"written: {report.save(document, 'training-cpu', options.output)}")
    return 0


def _in_open_clips_environment(case: Case, seconds: float, threads: int) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    request = json.dumps([asdict(case), seconds, threads])
    done = subprocess.run(
        [str(OPEN_CLIP), "-m", "benchmarks.training", "--case", request],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {**asdict(case), "failure": said[-1][:160]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
