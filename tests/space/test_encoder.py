"""The encoder: the same points whatever the batches, plain tensors out."""

from __future__ import annotations

import pytest
import torch

from fastclip.models import CLIP, Tokenizer
from fastclip.space import Encoder
from tests.tiny_model import TINY


def test_points_do_not_depend_on_batches_and_can_be_used_in_autograd() -> None:
    torch.manual_seed(0)
    model, done = CLIP(TINY), []
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    texts = ["a", "two words", "a much longer text than that", "b", "c"]
    small = Encoder(model, Tokenizer(), batch_size=2, progress=done.append)
    whole = Encoder(model, Tokenizer())
    torch.testing.assert_close(small.images(images), whole.images(images))
    torch.testing.assert_close(small.texts(texts), whole.texts(texts))
    together = Encoder(model, Tokenizer(), batch_size=2, workers=3)
    torch.testing.assert_close(together.images(images), whole.images(images))
    assert done == [2, 2, 2, 1, 2, 2, 1]
    points = whole.images(images)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(points, whole.images(model.preprocess(images)))
    (points * torch.ones(12, requires_grad=True)).sum().backward()
    assert not model.training


def test_errors() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Encoder(CLIP(TINY), Tokenizer(), batch_size=0)
    with pytest.raises(ValueError, match="nothing to encode"):
        Encoder(CLIP(TINY), Tokenizer()).texts([])
