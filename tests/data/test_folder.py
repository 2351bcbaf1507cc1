"""A user's own pictures: folders, the captions beside them, and everything that can be wrong with either."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastclip.data import DataError, open_source
from fastclip.data.captions import MAX_CAPTION, Keys
from fastclip.data.folder import FolderRecords
from fastclip.data.ondisk import RecordSource


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade, 255 - shade, 90)).save(path)
    return path


def opened(path: Path, held_out_share: float = 0, **options: object) -> RecordSource:
    source = open_source(path, 8, held_out_share=held_out_share, **options)  # type: ignore[arg-type]
    assert isinstance(source, RecordSource)
    return source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of forty pictures, each with a caption of its own."""
    for i in range(40):
        picture(tmp_path / f"{'ab'[i % 2]}/{i:02}.png", 6 * i).with_suffix(".txt").write_text(f"shade {i}\n")
    return tmp_path


def test_pictures_go_with_the_captions_beside_them(folder: Path) -> None:
    source = opened(folder)
    assert len(source) == 40 and source.held_out() == [] and not source.skipped
    pairs = source.fetch(range(40), seed=0, epoch=0)
    assert pairs.images.shape == (40, 3, 8, 8) and pairs.images.dtype == torch.uint8
    for image, caption in zip(pairs.images, pairs.captions, strict=True):
        assert int(image[0, 4, 4]) == 6 * int(caption.split()[1])


def test_captions_come_as_text_or_json(tmp_path: Path) -> None:
    contents = {
        "a.txt": "  one\tcaption \n\n",
        "b.txt": "first\nsecond\n",
        "c.json": json.dumps("plain"),
        "d.json": json.dumps(["x", "y"]),
        "e.json": json.dumps({"caption": "inside", "width": 3}),
        "f.json": json.dumps({"captions": ["p", "q", 3, None]}),
        "g.txt": "\ufeffwith a byte-order mark",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        picture((tmp_path / name).with_suffix(".jpg"), 9)
    records = FolderRecords(tmp_path)
    captions = {Path(records.where(i)).stem: records.captions(i).texts for i in range(len(records))}
    assert captions == {
        "a": ("one caption",),
        "b": ("first", "second"),
        "c": ("plain",),
        "d": ("x", "y"),
        "e": ("inside",),
        "f": ("p", "q"),
        "g": ("with a byte-order mark",),
    }


def test_a_named_key_comes_before_the_text_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 9).with_suffix(".txt").write_text("alt text")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "plain", "recaption": "better"}))
    assert FolderRecords(tmp_path).captions(0).texts == ("alt text",)
    assert FolderRecords(tmp_path, Keys.parse("recaption")).captions(0).texts == ("better",)


def test_two_pictures_of_one_stem_are_one_pair(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 9).with_suffix(".txt").write_text("text")
    picture(tmp_path / "a.png", 9)
    source = opened(tmp_path)
    assert len(source) == 1 and source.skipped_files == {str(tmp_path / "a.png"): "duplicate key"}


def test_pictures_without_a_usable_caption_are_counted(folder: Path) -> None:
    picture(folder / "none.png", 1)
    picture(folder / "blank.png", 1).with_suffix(".txt").write_text(" \n")
    picture(folder / "latin.png", 1).with_suffix(".txt").write_bytes(b"caf\xe9")
    picture(folder / "broken.png", 1).with_suffix(".json").write_text("{")
    picture(folder / "number.png", 1).with_suffix(".json").write_text("3")
    picture(folder / ".hidden.png", 1)
    source = opened(folder)
    assert len(source) == 44 and source.skipped == {"no caption": 1}  # what a list of names can tell
    assert len(source.fetch(range(44), seed=0, epoch=0)) == 40
    assert source.skipped == {"no caption": 3, "caption is not UTF-8": 1, "caption is not valid JSON": 1}
    assert source.skipped_files[str(folder / "latin.png")] == "caption is not UTF-8"


def test_a_huge_caption_is_cut(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1).with_suffix(".txt").write_text("word " * 1_000_000)
    assert len(FolderRecords(tmp_path).captions(0).texts[0]) == MAX_CAPTION


def test_a_folder_without_captions_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 1)
    with pytest.raises(ValueError, match=r"none of the 2 pictures.*no caption \(2\).*\.txt or \.json.*\.csv"):
        FolderRecords(tmp_path)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no pictures in .*\.jpg"):
        FolderRecords(tmp_path)


def test_what_is_not_there_or_not_known_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder"):
        open_source(tmp_path / "gone")
    (tmp_path / "data.xyz").write_text("")
    with pytest.raises(DataError, match=r"neither a folder nor a \.tar, \.csv.*--dataset-type"):
        open_source(tmp_path / "data.xyz")
    picture(tmp_path / "a.jpg", 9).with_suffix(".txt").write_text("text")
    with pytest.raises(ValueError, match=r"held_out_share.*\[0, 1\].*got 2"):
        open_source(tmp_path, held_out_share=2)


def test_unreadable_pictures_are_left_out_and_counted_once(folder: Path) -> None:
    good = (folder / "a/00.png").read_bytes()
    bad = {"a/00": b"", "a/02": b"<html>not found</html>", "b/01": good[: len(good) // 2], "b/03": b"\0" * 99}
    for name, data in bad.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "a/04.png").unlink()
    source = opened(folder)
    (folder / "a/06.png").unlink()  # gone after the listing
    reasons = {
        "empty file": 1,
        "HTML or text in place of a picture": 1,
        "truncated": 1,
        "not a picture": 1,
        "no such file": 1,
    }
    for epoch in range(3):
        pairs = source.fetch(range(len(source)), seed=0, epoch=epoch)
        assert len(pairs) == len(pairs.images) == len(pairs.labels) == len(pairs.indices) == 34
        assert source.skipped == reasons
    assert source.skipped_files[str(folder / "a/02.png")] == "HTML or text in place of a picture"
    kept = pairs.indices.tolist()
    again = source.fetch(kept, seed=0, epoch=2)
    assert torch.equal(again.images, pairs.images) and again.captions == pairs.captions


def test_a_batch_of_bad_pictures_is_empty(folder: Path) -> None:
    source = opened(folder)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    pairs = source.fetch(range(40), seed=0, epoch=0)
    assert len(pairs) == 0 and pairs.images.shape == (0, 3, 8, 8)
    assert source.skipped == {"empty file": 40}


def test_threads_count_each_bad_picture_once(folder: Path) -> None:
    source = opened(folder)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda epoch: source.fetch(range(40), seed=0, epoch=epoch), range(16)))
    assert source.skipped == {"empty file": 40}


def test_validation_pictures_are_kept_apart(folder: Path) -> None:
    source = opened(folder, 0.25)
    (test,) = source.held_out()
    assert len(source) == 30 and len(test) == 10 and test.name == "validation" and test.headline == "R@1"
    trained = set(source.fetch(range(30), seed=0, epoch=0).captions)
    asked = {test.gallery[t] for t in test.target}
    assert not trained & asked and len(trained | asked) == 40
    for image, target in zip(test.images, test.target, strict=True):
        assert int(image[0, 4, 4]) == 6 * int(test.gallery[target].split()[1])
    same, other = (
        opened(folder, 0.25),
        opened(folder, 0.25, seed=1),
    )
    assert same.held_out()[0].gallery == test.gallery != other.held_out()[0].gallery


def test_unreadable_validation_pictures_are_counted_too(folder: Path) -> None:
    source = opened(folder, 0.25)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    assert source.held_out() == []
    assert source.skipped == {"empty file": 10}


def test_captions_and_crops_depend_on_their_key_alone(folder: Path) -> None:
    for file in folder.rglob("*.txt"):
        file.write_text("\n".join(f"{file.stem} {i}" for i in range(9)))
        Image.effect_noise((30, 24), 90).save(file.with_suffix(".png"))
    source = opened(folder)
    together = source.fetch(range(40), seed=3, epoch=1)
    backwards = source.fetch(range(39, -1, -1), seed=3, epoch=1)
    assert torch.equal(together.images, backwards.images.flip(0))
    assert together.captions == backwards.captions[::-1]
    later = source.fetch(range(40), seed=3, epoch=2)
    assert not torch.equal(together.images, later.images) and together.captions != later.captions
    assert len({caption.split()[1] for caption in together.captions}) == 9
    plain = source.fetch(range(40), seed=3, epoch=2, augment=False)
    assert all(caption.endswith(" 0") for caption in plain.captions)


def test_equal_captions_share_a_label(folder: Path) -> None:
    for i, file in enumerate(sorted(folder.rglob("*.txt"))):
        file.write_text(f"kind {i % 7}")
    pairs = opened(folder).fetch(range(40), seed=0, epoch=0)
    labels = set(zip(pairs.captions, pairs.labels.tolist(), strict=True))
    assert len(labels) == len(set(pairs.labels.tolist())) == 7
    assert pairs.labels.min() >= 0


def test_the_control_has_the_same_captions_on_other_pictures(folder: Path) -> None:
    real = opened(folder, 0.1).fetch(range(36), seed=0, epoch=0)
    control = opened(folder, 0.1, shuffled_captions=True).fetch(range(36), seed=0, epoch=0)
    assert torch.equal(real.images, control.images)
    assert Counter(real.captions) == Counter(control.captions) and real.captions != control.captions
