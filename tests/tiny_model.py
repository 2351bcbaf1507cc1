"""A tiny random model on disk and a few coloured pictures, for tests of the commands."""

from __future__ import annotations

from pathlib import Path

import torch

from fastclip.models import CLIP, CLIPConfig, TextConfig, VisionConfig, save

SIDE = 16
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
TINY = CLIPConfig(
    vision=VisionConfig(image_size=SIDE, patch_size=8, width=16, layers=1, heads=2),
    text=TextConfig(width=16, layers=1, heads=2),
    embed_dim=12,
    activation="gelu",
)


def write_model(folder: Path) -> Path:
    """Write a randomly initialised model; return its folder."""
    torch.manual_seed(0)
    save(CLIP(TINY), folder)
    return folder


def write_run(folder: Path) -> Path:
    """Write what a run with --ema leaves: a checkpoint with last and, of another seed, averaged weights."""
    checkpoint = folder / "checkpoints" / "step_00000001"
    for name, seed in (("model", 0), ("ema", 1)):
        torch.manual_seed(seed)
        save(CLIP(TINY), checkpoint)
        (checkpoint / "model.safetensors").rename(checkpoint / f"{name}.part")
    for part in checkpoint.glob("*.part"):
        part.rename(part.with_suffix(".safetensors"))
    (checkpoint / "fastclip.json").rename(checkpoint / "state.json")
    return folder


def write_pictures(folder: Path, each: int = 3, *, captions: bool = False) -> list[Path]:
    """Write a folder of pictures for each colour, every picture a little different; return the files."""
    from PIL import Image

    files = []
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            file = folder / name / f"{i}.png"
            picture = Image.new("RGB", (20 + i, 20), colour)
            picture.putpixel((10, 10), (i * 10, 0, 0))
            picture.save(file)
            files.append(file)
            if captions:
                file.with_suffix(".txt").write_text(f"a {name} square number {i}\n")
    return files
