"""A tiny world for the training program: coloured blocks in corners, named by captions, and a model for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastclip.data.source import HeldOut, Pairs, PairSource, permutation, uniforms
from fastclip.models import PRESETS, CLIPConfig, TextConfig, VisionConfig
from fastclip.train.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from fastclip.train.loop import Trainer

SIDE = 16
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 50),
    "black": (0, 0, 0),
    "purple": (150, 60, 190),
    "orange": (250, 140, 20),
    "pink": (250, 150, 200),
    "brown": (130, 80, 30),
    "cyan": (60, 210, 220),
    "grey": (130, 130, 130),
    "navy": (20, 20, 110),
}
CORNERS = {"top left": (1, 1), "top right": (1, 9), "bottom left": (9, 1), "bottom right": (9, 9)}
NAMES = [(colour, corner) for colour in COLOURS for corner in CORNERS]

TINY = CLIPConfig(
    vision=VisionConfig(image_size=SIDE, patch_size=4, width=32, layers=1, heads=2),
    text=TextConfig(width=16, layers=1, heads=2),
    embed_dim=24,
    activation="gelu",
)


class Blocks(PairSource):
    """Blocks of 12 colours in 4 corners; each colour's one corner is held out. `copies` pictures of each, noisy."""

    credits = "Blocks by the tests."

    def __init__(self, copies: int = 3, shuffled: bool = False) -> None:
        super().__init__("blocks", SIDE)
        held = {(colour, list(CORNERS)[i % 4]) for i, colour in enumerate(COLOURS)}
        self.kinds = [name for name in NAMES if name not in held] * copies
        self.named = self.kinds
        if shuffled:
            self.named = [self.kinds[i] for i in permutation(len(self.kinds), 5, -1)]
        self.held = sorted(held)

    def __len__(self) -> int:
        return len(self.kinds)

    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int) -> Pairs:
        index = torch.as_tensor(indices).tolist()
        noise = uniforms(index, 3 * SIDE * SIDE, seed=seed, epoch=epoch).reshape(-1, 3, SIDE, SIDE)
        images = torch.stack([picture(*self.kinds[i]) for i in index]) - torch.from_numpy(noise * 25).byte()
        captions = [caption(*self.named[i]) for i in index]
        labels = torch.tensor([NAMES.index(self.named[i]) for i in index])
        return Pairs(images, captions, labels, torch.tensor(index))

    def held_out(self) -> list[HeldOut]:
        target = torch.tensor([NAMES.index(name) for name in self.held])
        group = target // len(CORNERS) * len(CORNERS)
        return [
            HeldOut(
                "unseen corner",
                torch.stack([picture(*name) for name in self.held]),
                [caption(*name) for name in NAMES],
                target,
                group[:, None] + torch.arange(len(CORNERS)),
                "corner of four",
                "R@1",
            )
        ]


def picture(colour: str, corner: str) -> Tensor:
    image = torch.full((3, SIDE, SIDE), 230, dtype=torch.uint8)
    y, x = CORNERS[corner]
    image[:, y : y + 6, x : x + 6] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
    return image


def caption(colour: str, corner: str) -> str:
    return f"a {colour} block, {corner}"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are trained fastest by one thread: a second one mostly waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture
def blocks() -> Callable[..., Blocks]:
    return Blocks


def make_config(**settings: Any) -> Config:
    """Make a small config; a setting goes to the concern that has it."""
    config = Config(
        data=DataConfig(batch_size=16, workers=1),
        model=ModelConfig(model="tiny"),
        optim=OptimConfig(epochs=2, lr=3e-3, wd=0.1, warmup=2),
        run=RunConfig(device="cpu", log_every_n_steps=1, save_frequency=0, val_frequency=0),
    )
    for key, value in settings.items():
        concern = next(f.name for f in dataclasses.fields(config) if hasattr(getattr(config, f.name), key))
        part = dataclasses.replace(getattr(config, concern), **{key: value})
        config = dataclasses.replace(config, **{concern: part})
    return config


@pytest.fixture
def tiny_config() -> Callable[..., Config]:
    """Return a maker of small configs; a setting goes to the concern that has it."""
    return make_config


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """Return a maker of quiet trainers of the tiny model on blocks."""

    def make(folder: Path | None = None, source: PairSource | None = None, **settings: Any) -> Trainer:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return Trainer(
            make_config(**settings), TINY, Blocks() if source is None else source, folder, quiet=True
        )

    return make
