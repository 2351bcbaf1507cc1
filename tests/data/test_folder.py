"""A user's own pictures: folders, tables, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastclip.data import open_source
from fastclip.data.emoji import EmojiSource
from fastclip.data.folder import FolderSource
from fastclip.data.listing import MAX_CAPTION, list_folder, list_table
from fastclip.data.shapes import ShapesSource


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade, 255 - shade, 90)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of forty pictures, each with a caption of its own."""
    for i in range(40):
        picture(tmp_path / f"{'ab'[i % 2]}/{i:02}.png", 6 * i).with_suffix(".txt").write_text(f"shade {i}\n")
    return tmp_path


def test_pictures_go_with_the_captions_beside_them(folder: Path) -> None:
    source = FolderSource(folder, 8, held_out_share=0)
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
    captions = {record.path.stem: record.captions for record in list_folder(tmp_path).records}
    assert captions == {
        "a": ("one caption",),
        "b": ("first", "second"),
        "c": ("plain",),
        "d": ("x", "y"),
        "e": ("inside",),
        "f": ("p", "q"),
        "g": ("with a byte-order mark",),
    }


def test_pictures_without_a_usable_caption_are_counted(folder: Path) -> None:
    picture(folder / "none.png", 1)
    picture(folder / "blank.png", 1).with_suffix(".txt").write_text(" \n")
    picture(folder / "latin.png", 1).with_suffix(".txt").write_bytes(b"caf\xe9")
    picture(folder / "broken.png", 1).with_suffix(".json").write_text("{")
    picture(folder / "number.png", 1).with_suffix(".json").write_text("3")
    picture(folder / ".hidden.png", 1)
    source = FolderSource(folder, 8, held_out_share=0)
    assert len(source) == 40
    assert source.skipped == {"no caption": 3, "caption is not UTF-8": 1, "caption is not valid JSON": 1}
    assert source.skipped_files[str(folder / "latin.png")] == "caption is not UTF-8"


def test_a_huge_caption_is_cut(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1).with_suffix(".txt").write_text("word " * 1_000_000)
    (record,) = list_folder(tmp_path).records
    assert len(record.captions[0]) == MAX_CAPTION


def test_a_folder_without_captions_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 1)
    with pytest.raises(ValueError, match=r"none of the 2 pictures.*no caption \(2\).*\.txt or \.json.*\.csv"):
        FolderSource(tmp_path)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no pictures in .*\.jpg"):
        FolderSource(tmp_path)


def test_what_is_not_there_or_not_known_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder"):
        FolderSource(tmp_path / "gone")
    (tmp_path / "data.xyz").write_text("")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.csv or \.tsv file"):
        FolderSource(tmp_path / "data.xyz")
    with pytest.raises(ValueError, match=r"held_out_share.*\[0, 1\).*got 1"):
        FolderSource(tmp_path, held_out_share=1)


def test_unreadable_pictures_are_left_out_and_counted_once(folder: Path) -> None:
    good = (folder / "a/00.png").read_bytes()
    bad = {"a/00": b"", "a/02": b"<html>not found</html>", "b/01": good[: len(good) // 2], "b/03": b"\0" * 99}
    for name, data in bad.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "a/04.png").unlink()
    source = FolderSource(folder, 8, held_out_share=0)
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
    source = FolderSource(folder, 8, held_out_share=0)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    pairs = source.fetch(range(40), seed=0, epoch=0)
    assert len(pairs) == 0 and pairs.images.shape == (0, 3, 8, 8)
    assert source.skipped == {"empty file": 40}


def test_threads_count_each_bad_picture_once(folder: Path) -> None:
    source = FolderSource(folder, 8, held_out_share=0)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda epoch: source.fetch(range(40), seed=0, epoch=epoch), range(16)))
    assert source.skipped == {"empty file": 40}


def test_validation_pictures_are_kept_apart(folder: Path) -> None:
    source = FolderSource(folder, 8, held_out_share=0.25)
    (test,) = source.held_out()
    assert len(source) == 30 and len(test) == 10 and test.name == "validation" and test.headline == "R@1"
    trained = set(source.fetch(range(30), seed=0, epoch=0).captions)
    asked = {test.gallery[t] for t in test.target}
    assert not trained & asked and len(trained | asked) == 40
    for image, target in zip(test.images, test.target, strict=True):
        assert int(image[0, 4, 4]) == 6 * int(test.gallery[target].split()[1])
    same, other = (
        FolderSource(folder, 8, held_out_share=0.25),
        FolderSource(folder, 8, 1, held_out_share=0.25),
    )
    assert same.held_out()[0].gallery == test.gallery != other.held_out()[0].gallery


def test_unreadable_validation_pictures_are_counted_too(folder: Path) -> None:
    source = FolderSource(folder, 8, held_out_share=0.25)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    assert source.held_out() == []
    assert source.skipped == {"empty file": 10}


def test_captions_and_crops_depend_on_their_key_alone(folder: Path) -> None:
    for file in folder.rglob("*.txt"):
        file.write_text("\n".join(f"{file.stem} {i}" for i in range(9)))
        Image.effect_noise((30, 24), 90).save(file.with_suffix(".png"))
    source = FolderSource(folder, 8, held_out_share=0)
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
    pairs = FolderSource(folder, 8, held_out_share=0).fetch(range(40), seed=0, epoch=0)
    labels = set(zip(pairs.captions, pairs.labels.tolist(), strict=True))
    assert len(labels) == len(set(pairs.labels.tolist())) == 7
    assert pairs.labels.min() >= 0


def test_the_control_has_the_same_captions_on_other_pictures(folder: Path) -> None:
    real = FolderSource(folder, 8, held_out_share=0.1).fetch(range(36), seed=0, epoch=0)
    control = FolderSource(folder, 8, held_out_share=0.1, shuffled_captions=True).fetch(
        range(36), seed=0, epoch=0
    )
    assert torch.equal(real.images, control.images)
    assert Counter(real.captions) == Counter(control.captions) and real.captions != control.captions


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("t.csv", "filepath,title", ","),
        ("t.tsv", "filepath\ttitle", "\t"),
        ("t.csv", "caption;extra, or not;image", ";"),
        ("t.csv", "filepath\ttitle", "\t"),
    ],
)
def test_a_table_gives_pictures_and_captions(tmp_path: Path, name: str, header: str, separator: str) -> None:
    lines = ["\ufeff" + header]
    for i in range(6):
        picture(tmp_path / f"p/{i}.png", 40 * i)
        fields = {"filepath": f"p/{i}.png", "title": f"shade {i}"}
        fields |= {"image": fields["filepath"], "caption": fields["title"]}
        lines.append(separator.join(fields.get(key, "…") for key in header.split(separator)))
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    source = FolderSource(tmp_path / name, 8, held_out_share=0)
    pairs = source.fetch(range(6), seed=0, epoch=0)
    assert sorted(pairs.captions) == [f"shade {i}" for i in range(6)]
    for image, caption in zip(pairs.images, pairs.captions, strict=True):
        assert int(image[0, 4, 4]) == 40 * int(caption.split()[1])


def test_rows_of_one_picture_are_its_captions(tmp_path: Path) -> None:
    # Else the picture would be its own negative, and could stand in training and validation at once.
    table = tmp_path / "t.csv"
    table.write_text('filepath,title\na.png,"one, two"\nb.png,other\na.png,three\n')
    records = list_table(table).records
    assert [(r.path, r.captions) for r in records] == [
        (tmp_path / "a.png", ("one, two", "three")),
        (tmp_path / "b.png", ("other",)),
    ]


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("url|file|alt|note\nx|a.png|seen|better\n")
    (record,) = list_table(table, "file", "note", "|").records
    assert record.captions == ("better",)
    with pytest.raises(
        ValueError, match=r"no caption column 'title'.*'url', 'file', 'alt', 'note'.*--csv-caption-key"
    ):
        list_table(table, "file", "title", "|")
    with pytest.raises(ValueError, match=r"no image column 'filepath' or 'image'.*--csv-img-key"):
        list_table(table)


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(
        b"filepath,title\na.png,good\nb.png\n,lost\nc.png,  \nd.png,caf\xe9\ne.png," + b"x" * 300_000
    )
    listing = list_table(table)
    assert [record.path.name for record in listing.records] == ["a.png", "e.png"]
    assert Counter(listing.skipped.values()) == {
        "row without picture or caption": 2,
        "no caption": 1,
        "caption is not UTF-8": 1,
    }
    assert f"{table}, row 2" in listing.skipped


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("filepath,title\n")
    with pytest.raises(ValueError, match=r"none of the 0 rows"):
        FolderSource(table)
    table.write_text("")
    with pytest.raises(ValueError, match=r"columns are none"):
        FolderSource(table)


def test_relative_paths_may_start_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "pictures/a.png", 50)
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists/t.csv"
    table.write_text("filepath,title\npictures/a.png,here\n")
    monkeypatch.chdir(tmp_path)
    assert len(FolderSource(table, 8, held_out_share=0).fetch([0], seed=0, epoch=0)) == 1


def test_a_source_is_chosen_by_what_is_asked_for(folder: Path, emoji_cache: Path) -> None:
    assert isinstance(open_source(folder, 8), FolderSource)
    assert isinstance(open_source("shapes", 32), ShapesSource)
    assert isinstance(open_source(None, 32, cache_dir=emoji_cache), EmojiSource)
    assert isinstance(open_source("emoji", 32, cache_dir=emoji_cache), EmojiSource)
    assert open_source("shapes", 32, shuffled_captions=True).name == "shapes, shuffled captions"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(folder / "nowhere", 32)


def test_a_folder_wins_over_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "shapes")
    assert isinstance(open_source("shapes", 8), FolderSource)
