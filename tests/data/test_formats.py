"""The same samples in every format are the same training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastclip.data import open_source
from fastclip.train.feed import Cursor, batches
from tests.data import formats

COUNT = 40


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """Return the path of the same forty samples in every format."""
    wanted = formats.samples(COUNT)
    return {name: write(wanted, tmp_path_factory.mktemp("format")) for name, write in formats.FORMATS.items()}


@pytest.mark.parametrize("name", formats.FORMATS)
def test_an_epoch_is_the_same_from_every_format(
    name: str, places: dict[str, Path | str], tmp_path: Path
) -> None:
    """Same pictures, captions, labels and order, so the same losses."""
    reference = open_source(places["folder"], 16)
    source = open_source(places[name], 16, cache_dir=tmp_path)
    assert len(source) == len(reference) == COUNT - 2 and not source.skipped
    epochs = [
        list(batches(s, 6, seed=5, start=Cursor(), count=7, workers=workers))
        for s, workers in ((reference, 0), (source, 2))
    ]
    for ours, other in zip(*epochs, strict=True):
        assert (ours.at, ours.pairs.captions) == (other.at, other.pairs.captions)
        for part in ("images", "labels", "indices"):
            assert torch.equal(getattr(ours.pairs, part), getattr(other.pairs, part)), part
    assert {batch.at.epoch for batch in epochs[1]} == {0, 1}
    (test,), (expected,) = source.held_out(), reference.held_out()
    assert test.gallery == expected.gallery and torch.equal(test.images, expected.images)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_second_opening_reads_what_the_first_one_kept(
    name: str, places: dict[str, Path | str], tmp_path: Path
) -> None:
    def everything() -> list[str]:
        source = open_source(places[name], 16, cache_dir=tmp_path, held_out_share=0)
        return source.fetch(range(len(source)), seed=0, epoch=0).captions

    first, kept = everything(), {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    assert everything() == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")} == kept
