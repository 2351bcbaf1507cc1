"""The exams a model sits during its run: retrieval on held-out pairs, and classes of pictures known by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.data.source import DataError, HeldOut, PairSource
from fastclip.train.checkpoint.ranks import gather
from fastclip.train.distributed import World
from fastclip.train.encoders import Encoders
from fastclip.train.evaluate import Embedded, Result, embed, measure
from fastclip.train.optim import AveragedWeights
from fastclip.train.zeroshot import classify, open_classes


class Exams:
    """Measure a model, on the averaged weights if there are any. Every rank must call what is here: work is shared.

    Args:
        encoders: of the model.
        tokenizer: of its texts.
        source: the held-out tests.
        classes: `--zeroshot-data`, a folder with a folder of pictures per class, or None.
        world: who shares the work; results are rank 0's.
        averaged: the moving average of the weights.
    """

    def __init__(
        self,
        encoders: Encoders,
        tokenizer: Callable[[list[str]], Tensor],
        source: PairSource,
        classes: str | None,
        world: World,
        device: torch.device,
        averaged: AveragedWeights | None,
    ) -> None:
        self.encoders, self.source, self.world, self.device = encoders, source, world, device
        self.averaged, self.tokenizer = averaged, tokenizer
        self.model: Any = encoders.model
        self.classes_name = None if classes is None else Path(classes).name
        self.classes = open_classes(classes, source.image_size)
        self.tests: list[HeldOut] | None = None
        self.embedded: list[Embedded] = []  #: the held-out tests as the model saw them last
        self.results: list[Result] = []  #: and the figures it got
        self.classified: Result | None = None  #: how many of the classes the model knew
        self.taken = False  #: whether the held-out tests have been taken at all

    def retrieval(self) -> dict[str, Result]:
        """Measure the held-out tests; return the figures by the prefix that their keys have in the log."""
        if self.tests is None:
            self.tests = self.source.held_out()
            self._check_tests(self.tests)
        with self._at_its_best():
            embedded = [embed(test, self.images, self.texts, world=self.world) for test in self.tests]
        self.taken = True
        if not self.world.is_main:
            return {}
        self.embedded, self.results = embedded, [measure(one) for one in embedded]
        return dict(zip(self.prefixes, self.results, strict=True))

    def _check_tests(self, tests: list[HeldOut]) -> None:
        """Raise DataError, on every rank, if ranks could not read the same tests: each encodes a part of them."""
        if self.world.size == 1:
            return
        read = [(test.name, len(test), len(test.gallery), test.target.tolist()) for test in tests]
        if any(theirs != read for theirs in gather(read)):
            raise DataError(
                "the ranks could not read the same held-out pairs; repair the data of every machine, or evaluate with "
                "one process"
            )

    def zeroshot(self) -> dict[str, float]:
        """Classify the pictures of the classes by their names; return figures by key, none without classes."""
        if self.classes is None:
            return {}
        with self._at_its_best():
            self.classified = classify(self.classes, self.images, self.texts)
        metrics = self.classified.metrics
        return {f"{self.classes_name}-zeroshot-val-{key}": value for key, value in metrics.items()}

    @property
    def prefixes(self) -> list[str]:
        """What the keys of each result begin with: one test is simply "val", several carry their names."""
        if len(self.results) == 1:
            return ["val"]
        return [f"val/{result.name.replace(' ', '_')}" for result in self.results]

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Encode uint8 pictures (B, 3, S, S), or features (B, F), to features (B, D)."""
        return self.encoders(images.to(self.device), None)

    @torch.no_grad()
    def texts(self, texts: list[str] | Tensor) -> Tensor:
        """Encode B captions, or features (B, G), to features (B, D)."""
        if not isinstance(texts, Tensor):
            texts = self.tokenizer(texts)
        return self.encoders(None, texts.to(self.device))

    @contextlib.contextmanager
    def _at_its_best(self) -> Iterator[None]:
        """Put the model into evaluation mode, with its averaged weights, while the context lasts."""
        self.world.average_statistics(self.model, self.averaged)
        self.model.eval()
        try:
            with contextlib.nullcontext() if self.averaged is None else self.averaged.in_place():
                yield
        finally:
            self.model.train()
