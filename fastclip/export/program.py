"""Write a model's two towers as ONNX files, and check them against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastclip.space.command import (
    AveragedFlag,
    CommandError,
    ModelArgument,
    OutputArgument,
    open_model,
    write_json,
)

TOLERANCE = 1e-4  # of unit-length outputs; onnxruntime adds up in another order
BATCHES = (1, 2, 5)  # the check's; the export sees 2 only


@dataclass(frozen=True)
class Options:
    """Export a model's two towers to ONNX, for any batch size, and check the files with onnxruntime.

    image.onnx takes `images`, text.onnx takes `tokens`; both give `features`. model.json says what they expect:
    picture size, mean and standard deviation, context length, logit scale.
    """

    model: ModelArgument
    """A run of fastclip.train, or any other weights that fastclip.models.load reads."""
    output: OutputArgument
    """The folder to write."""
    uint8: bool = False
    """Let image.onnx take uint8 pictures and normalise them itself. Default: float, normalised before."""
    normalize: bool = True
    """Bring features to length 1."""
    opset: int = 18
    """Version of ONNX's operators."""
    averaged: AveragedFlag = False


@dataclass(frozen=True)
class Tower:
    """One exported file and how far its output is from torch's."""

    file: str
    input: str
    largest_difference: float  #: over all entries, batches of 1, 2 and 5
    mebibytes: float


class _Images(nn.Module):
    def __init__(self, model: Any, uint8: bool, normalize: bool) -> None:
        super().__init__()
        self.model, self.uint8, self.normalize = model, uint8, normalize

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(
            self.model.preprocess(images) if self.uint8 else images, self.normalize
        )


class _Texts(nn.Module):
    def __init__(self, model: Any, normalize: bool) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens, self.normalize)


def run(options: Options) -> list[Tower]:
    """Export and check; return both towers.

    Raises:
        CommandError: a package is missing, or a file's outputs are not torch's.
    """
    _require_packages()
    model, _, tokenizer = open_model(options.model, "cpu", averaged=options.averaged)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    side = model.config.vision.image_size
    generator = torch.Generator().manual_seed(0)

    def images(batch: int) -> Tensor:
        pixels = torch.randint(0, 256, (batch, 3, side, side), generator=generator).to(torch.uint8)
        return pixels if options.uint8 else model.preprocess(pixels)

    def tokens(batch: int) -> Tensor:
        texts = ["a", "a picture of a cat", "two red circles above a small blue square", "!", "one " * 100]
        return tokenizer([texts[i % len(texts)] for i in range(batch)])

    towers = [
        export_tower(
            _Images(model, options.uint8, options.normalize), "images", images, folder / "image.onnx", options
        ),
        export_tower(_Texts(model, options.normalize), "tokens", tokens, folder / "text.onnx", options),
    ]
    vision, scale = model.config.vision, float(model.logit_scale.detach().exp())
    write_json(
        folder / "model.json",
        {
            "image_size": side,
            "mean": list(vision.mean),
            "std": list(vision.std),
            "images": "uint8 (B, 3, S, S)"
            if options.uint8
            else "float32 (B, 3, S, S), (x / 255 - mean) / std",
            "tokens": f"int64 (B, {tokens(1).shape[1]})",
            "normalized": options.normalize,
            "logit_scale": scale,
            "averaged": options.averaged,
            "opset": options.opset,
            "towers": [vars(tower) for tower in towers],
        },
    )
    for tower in towers:
        print(
            f"{folder / tower.file}: {tower.mebibytes:.1f} MiB, differs from torch by at most "
            f"{tower.largest_difference:.1e} (batches of {', '.join(map(str, BATCHES))})"
        )
    return towers


def export_tower(module: nn.Module, name: str, inputs: Any, path: Path, options: Options) -> Tower:
    """Export one tower and compare it with torch.

    Args:
        module: the tower; takes one tensor.
        name: of its input.
        inputs: batch size -> an input.
        path: the file.
        options: of the command.
    """
    batch = torch.export.Dim("batch", min=1)
    # The exporter tells of its own progress and plans; only errors are news here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (inputs(2),),
            str(path),
            input_names=[name],
            output_names=["features"],
            dynamic_shapes=({0: batch},),
            opset_version=options.opset,
            dynamo=True,
            external_data=sum(p.nbytes for p in module.parameters()) > 2**30,  # one file holds 2 GiB at most
            verbose=False,
        )
    difference = check_tower(module, name, [inputs(size) for size in BATCHES], path)
    if not difference <= TOLERANCE * (1.0 if options.normalize else 100.0):
        raise CommandError(
            f"{path} gives other features than torch: they differ by up to {difference:.1e}. Try another --opset"
        )
    return Tower(path.name, name, difference, path.stat().st_size / 2**20)


def check_tower(module: nn.Module, name: str, batches: list[Tensor], path: Path) -> float:
    """Run a file with onnxruntime on the CPU; return the largest difference from torch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in batches:
        try:
            (ours,) = session.run(["features"], {name: batch.numpy()})
        except Exception as error:  # onnxruntime has an exception for every reason, under no common name
            raise CommandError(f"{path} does not run on a batch of {len(batch)}: {error}") from error
        with torch.no_grad():
            theirs = module(batch).numpy()
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            return float("inf")
        largest = max(largest, float(np.abs(ours - theirs).max()))
    return largest


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise CommandError(
            f"the export needs {', '.join(missing)}, not installed here; run: pip install 'fastclip-kernels[export]'"
        )
