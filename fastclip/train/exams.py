"""The exams a model sits during its run: retrieval on held-out pairs, and classes of pictures known by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastclip.data.source import DataError, HeldOut, PairSource
from fastclip.train.checkpoint.ranks import gather
from fastclip.train.config import RunConfig
from fastclip.train.distributed import World
from fastclip.train.encoders import Encoders
from fastclip.train.evaluate import Embedded, Result, embed, measure, validation_loss
from fastclip.train.optim import AveragedWeights
from fastclip.train.signals import StopSignals
from fastclip.train.zeroshot import classify, open_classes

RETRIEVAL, ZEROSHOT = "retrieval", "zeroshot"  #: the exams, as checkpoints name those that were due

Inputs = TypeVar("Inputs")


class Interrupted(Exception):
    """A signal to some rank ended an exam between two batches, on all ranks. What it had found so far is dropped."""


class Exams:
    """Measure a model, on the averaged weights if there are any. Every rank must call what is here: work is shared.

    Args:
        encoders: of the model.
        tokenizer: of its texts.
        source: the held-out tests.
        run: says which classes of pictures there are to know, in `--zeroshot-data` and beside it.
        world: who shares the work; results are rank 0's.
        averaged: the moving average of the weights.
        stop: what signals ask for; after each batch the ranks tell each other.
        batch_size: pairs among which the loss of held-out pairs is measured.
    """

    def __init__(
        self,
        encoders: Encoders,
        tokenizer: Callable[[list[str]], Tensor],
        source: PairSource,
        run: RunConfig,
        world: World,
        device: torch.device,
        averaged: AveragedWeights | None,
        stop: StopSignals,
        batch_size: int,
    ) -> None:
        self.encoders, self.source, self.world, self.device = encoders, source, world, device
        self.averaged, self.tokenizer, self.stop = averaged, tokenizer, stop
        self.batch_size = batch_size
        self.model: Any = encoders.model
        self.classes_name = (
            None if run.zeroshot_data is None else run.zeroshot_name or Path(run.zeroshot_data).name
        )
        self.classes = open_classes(run, source.image_size)
        self.tests: list[HeldOut] | None = None
        self.embedded: list[Embedded] = []  #: the held-out tests as the model saw them last
        self.results: list[Result] = []  #: and the figures it got
        self.classified: Result | None = None  #: how many of the classes the model knew
        self.taken = False  #: whether the held-out tests have been taken at all
        self._same_classes = False  # whether the ranks have found that they see the same pictures

    def retrieval(self) -> dict[str, Result]:
        """Measure the held-out tests; return the figures by the prefix that their keys have in the log.

        Raises:
            Interrupted: a signal came.
            DataError: the ranks do not have the same tests.
        """
        if self.tests is None:
            tests = self.source.held_out()
            read = [(test.name, len(test), len(test.gallery), test.target.tolist()) for test in tests]
            self._check_same(read, "held-out pairs")
            self.tests = tests
        images, texts = self._until_stopped(self.images), self._until_stopped(self.texts)
        with self._at_its_best():
            embedded = [embed(test, images, texts, world=self.world) for test in self.tests]
            scale = self.model.logit_scale.exp().item()
        self.taken = True
        if not self.world.is_main:
            return {}
        self.embedded, self.results = embedded, [measure(one) for one in embedded]
        for one, result in zip(embedded, self.results, strict=True):
            loss = validation_loss(one, scale, self.batch_size)
            result.metrics.update({"clip_val_loss": loss, "num_samples": len(one.images)})
        return dict(zip(self.prefixes, self.results, strict=True))

    def zeroshot(self) -> dict[str, float]:
        """Classify the pictures of the classes by their names; return figures by key, none without classes.

        Raises:
            Interrupted: a signal came.
            DataError: the ranks do not see the same pictures.
        """
        if self.classes is None:
            return {}
        folder = self.classes.folder
        if not self._same_classes:
            self._check_same((folder.names, folder.labels.tolist()), "pictures of classes")
            self._same_classes = True
        images, texts = self._until_stopped(self.images), self._until_stopped(self.texts)
        with self._at_its_best():
            self.classified = classify(self.classes, images, texts, world=self.world)
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

    def held(self, keys: Collection[str]) -> set[str]:
        """Return the exams whose figures are among the keys of a log's lines."""
        zeroshot = {key for key in keys if key.startswith(f"val/{self.classes_name}-zeroshot-val-")}
        retrieval = {key for key in keys if key.startswith("val/")} - zeroshot
        return {exam for exam, theirs in ((RETRIEVAL, retrieval), (ZEROSHOT, zeroshot)) if theirs}

    def _check_same(self, seen: object, what: str) -> None:
        """Raise DataError, on every rank, if ranks have not seen the same: each encodes a part of it."""
        if self.world.size > 1 and any(theirs != seen for theirs in gather(seen)):
            raise DataError(
                f"the ranks could not read the same {what}; repair the data of every machine, or evaluate with one "
                "process"
            )

    def _until_stopped(self, encode: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
        """Return an encoder that raises Interrupted once a signal has come, on all ranks in the same batch."""

        def encode_or_stop(inputs: Inputs) -> Tensor:
            if self.world.any(self.stop.received is not None)[0]:
                raise Interrupted
            return encode(inputs)

        return encode_or_stop

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
