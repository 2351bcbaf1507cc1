"""CSV and TSV files: columns, separators, rows of one picture, and rows that are wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fastclip.data import DataError, open_source
from fastclip.data.captions import Captions, Keys
from fastclip.data.table import read_table


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade, 255 - shade, 90)).save(path)
    return path


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
    pairs = open_source(tmp_path / name, 8, held_out_share=0).fetch(range(6), seed=0, epoch=0)
    assert sorted(pairs.captions) == [f"shade {i}" for i in range(6)]
    for image, caption in zip(pairs.images, pairs.captions, strict=True):
        assert int(image[0, 4, 4]) == 40 * int(caption.split()[1])


def test_rows_of_one_picture_are_its_captions(tmp_path: Path) -> None:
    # Else the picture would be its own negative, and could stand in training and validation at once.
    table = tmp_path / "t.csv"
    table.write_text('filepath,title\nb.png,"one, two"\na.png,other\nb.png,three\n')
    records = read_table(table)
    found = [(records.where(i), records.captions(i)) for i in range(len(records))]
    assert found == [
        (str(tmp_path / "b.png"), Captions(("one, two", "three"))),
        (str(tmp_path / "a.png"), Captions(("other",))),
    ]


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("url|file|alt|note\nx|a.png|seen|better\n")
    assert read_table(table, "file", Keys(("note",)), "|").captions(0).texts == ("better",)
    both = read_table(table, "file", Keys.parse("alt=1,note=3"), "|").captions(0)
    assert both == Captions(("seen", "better"), (1.0, 3.0))
    with pytest.raises(
        DataError, match=r"no caption column 'title'.*'url', 'file', 'alt', 'note'.*--csv-caption-key"
    ):
        read_table(table, "file", Keys(("title",)), "|")
    with pytest.raises(DataError, match=r"no image column 'filepath' or 'image'.*--csv-img-key"):
        read_table(table)
    with pytest.raises(DataError, match=r"--csv-separator must be one character, got '\|\|'"):
        read_table(table, separator="||")


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(
        b"filepath,title\na.png,good\nb.png\n,lost\nc.png,  \nd.png,caf\xe9\ne.png,"
        + b"x" * 300_000
        + b"\nhttps://x/y.png,web\npipe:cat f.png,shell\n"
    )
    records = read_table(table)
    assert [Path(records.where(i)).name for i in range(len(records))] == ["a.png", "e.png"]
    assert Counter(records.skipped.values()) == {
        "row without picture or caption": 2,
        "no caption": 1,
        "caption is not UTF-8": 1,
        "a URL in place of a file": 2,
    }
    assert f"{table}, row 2" in records.skipped


def test_a_quote_never_closed_does_not_end_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclip.data.table.MAX_FIELD", 1000)
    table = tmp_path / "t.csv"
    table.write_text('filepath,title\na.png,good\nb.png,"open' + "\nx.png,lost" * 100 + '"\nc.png,fine\n')
    records = read_table(table)
    assert "row that cannot be parsed" in records.skipped.values()
    assert {Path(records.where(i)).name for i in range(len(records))} >= {"a.png", "c.png"}


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("filepath,title\n")
    with pytest.raises(DataError, match=r"none of the 0 rows"):
        read_table(table)
    table.write_text("")
    with pytest.raises(DataError, match=r"columns are none"):
        read_table(table)


def test_relative_paths_may_start_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "pictures/a.png", 50)
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists/t.csv"
    table.write_text("filepath,title\npictures/gone.png,lost\npictures/a.png,here\n")
    monkeypatch.chdir(tmp_path)
    assert open_source(table, 8, held_out_share=0).fetch([0, 1], seed=0, epoch=0).captions == ["here"]
