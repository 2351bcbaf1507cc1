"""Encode any number of pictures and texts with a model, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Encoder:
    """Turn pictures and texts into unit-length fp32 points, on the CPU.

    Args:
        model: has `encode_image`, `encode_text` and, for uint8 pictures, `preprocess`; put into evaluation mode.
        tokenizer: texts -> int64 (b, L).
        batch_size: pictures or texts encoded at a time.
        workers: batches encoded at the same time, each by a thread of its own. More than one pays for small models on
            the CPU, with `torch.set_num_threads(1)`: the operations of one batch then wait for no other thread.
        progress: called with the number of rows done after every batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        batch_size: int = 256,
        workers: int = 1,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.workers = workers
        self._progress = progress or (lambda rows: None)
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype

    def images(self, images: Tensor) -> Tensor:
        """Encode pictures uint8 (N, 3, S, S), or float as the model takes them -> (N, D)."""
        return self._encode(images, self._encode_images)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encode N texts -> (N, D)."""
        return self._encode(texts, self._encode_texts)

    def _encode(self, items: Any, encode: Callable[[Any], Tensor]) -> Tensor:
        if not len(items):
            raise ValueError("nothing to encode: there must be at least one picture or text")

        def part(start: int) -> Tensor:
            batch = items[start : start + self.batch_size]
            with torch.inference_mode():
                points = F.normalize(encode(batch).float(), dim=-1).cpu()
            self._progress(len(batch))
            return points

        starts = range(0, len(items), self.batch_size)
        if self.workers == 1:
            parts = [part(start) for start in starts]
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                parts = list(pool.map(part, starts))
        return torch.cat(parts)  # made outside of inference mode: a plain tensor

    def _encode_images(self, images: Tensor) -> Tensor:
        images = images.to(self._device)
        if images.dtype == torch.uint8:
            images = self.model.preprocess(images)
        return self.model.encode_image(images.to(self._dtype))

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(texts)).to(self._device))
