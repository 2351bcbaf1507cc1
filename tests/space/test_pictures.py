"""Pictures from folders: order, bad files, class names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastclip.space import ClassFolder, PictureFiles, list_pictures
from tests.tiny_model import write_pictures


def test_batches_come_in_order_without_what_cannot_be_read(tmp_path: Path) -> None:
    files = write_pictures(tmp_path)
    files[4].write_bytes(b"<html>gone</html>")
    pictures = PictureFiles(list_pictures(tmp_path), 8)
    assert pictures.files == sorted(files)
    for _ in range(2):  # a file is counted once, however often it is read
        batches = list(pictures.batches(2, workers=3))
        places = torch.cat([places for _, places in batches])
        assert places.tolist() == [i for i in range(9) if pictures.files[i] != files[4]]
    assert batches[0][0].shape == (2, 3, 8, 8) and batches[0][0].dtype == torch.uint8
    assert pictures.skipped == {"HTML or text in place of a picture": 1}
    assert list(pictures.skipped_files) == [str(files[4])]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_take_batches_in_turns(tmp_path: Path, ranks: int) -> None:
    write_pictures(tmp_path)
    pictures = PictureFiles(list_pictures(tmp_path), 8)
    shares = [
        [places.tolist() for _, places in pictures.batches(2, rank=rank, ranks=ranks)]
        for rank in range(ranks)
    ]
    assert shares == [[[0, 1], [2, 3], [4, 5], [6, 7], [8]][rank::ranks] for rank in range(ranks)]


def test_classes_are_the_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "blue").rename(tmp_path / "dark_blue")
    folder = ClassFolder(tmp_path, 8)
    assert folder.names == ("dark blue", "green", "red")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.cat([labels for _, labels in folder.batches(4)]).tolist() == folder.labels.tolist()
    names = {"dark_blue": "navy", "green": "lime", "red": "crimson"}
    assert ClassFolder(tmp_path, 8, names=names).names == ("navy", "lime", "crimson")


def test_folders_that_cannot_be_classified(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        ClassFolder(tmp_path / "none", 8)
    with pytest.raises(ValueError, match="at least two classes"):
        ClassFolder(tmp_path, 8)
    write_pictures(tmp_path)
    with pytest.raises(ValueError, match="no entry for 2 folders"):
        ClassFolder(tmp_path, 8, names={"red": "red"})
    with pytest.raises(ValueError, match="'same'"):
        ClassFolder(tmp_path, 8, names=dict.fromkeys(("red", "green", "blue"), "same"))
