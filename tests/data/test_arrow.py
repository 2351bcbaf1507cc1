"""Parquet files and datasets on disk: pictures as bytes, objects and paths, captions as strings and lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastclip.data import DataError, open_source
from fastclip.data.arrow import ArrowRecords, open_dataset, open_parquet
from fastclip.data.captions import Captions, Keys
from fastclip.data.table import TableRecords
from tests.data import formats
from tests.data.formats import jpeg

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_pictures_may_be_objects_of_bytes_or_path(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(jpeg(2))
    pictures = [{"bytes": jpeg(1), "path": "x.jpg"}, {"bytes": None, "path": "beside.jpg"}]
    records = open_parquet(
        str(write(tmp_path / "t.parquet", image=pictures, text=["a", "b"])), None, None, tmp_path
    )
    assert isinstance(records, ArrowRecords)
    assert [records.picture(i) for i in (0, 1)] == [jpeg(1), jpeg(2)]
    assert records.where(1) == f"{tmp_path}/t.parquet, row 2"


def test_captions_may_be_lists_and_stand_in_several_columns(tmp_path: Path) -> None:
    columns = {"jpg": [jpeg(1)], "alt": ["old"], "caption": [["a", "b"]], "recaption": [[None, "new"]]}
    path = str(write(tmp_path / "t.parquet", **columns))
    assert open_parquet(path, None, None, tmp_path).captions(0).texts == ("a", "b")
    named = open_parquet(path, "jpg", Keys.parse("alt=1,recaption=4"), tmp_path)
    assert named.captions(0) == Captions(("old", "new"), (1.0, 4.0))


def test_rows_of_one_path_are_one_pair(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet", filepath=["b.jpg", "a.jpg", "b.jpg", None], title=["x", "y", "z", "no"]
    )
    records = open_parquet(str(path), None, None, tmp_path)
    assert isinstance(records, TableRecords) and len(records) == 2
    assert records.captions(0).texts == ("x", "z")
    assert list(records.skipped.values()) == ["row without picture or caption"]


def test_files_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", jpg=[jpeg(1)], caption=["good"])
    write(tmp_path / "2.parquet", jpg=[jpeg(1)], other=["column"])
    (tmp_path / "3.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-30])
    (tmp_path / "4.parquet").write_bytes(b"")
    source = open_source(tmp_path, 16, cache_dir=tmp_path / "cache", held_out_share=0)
    assert source.fetch([0], seed=0, epoch=0).captions == ["good"] and len(source) == 1
    assert source.skipped == {"damaged table": 2, "other columns than the first file": 1}


def test_a_file_damaged_inside_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", jpg=[jpeg(1)], caption=["good"])
    data = bytearray(
        write(tmp_path / "2.parquet", jpg=[jpeg(i) for i in range(9)], caption=["x"] * 9).read_bytes()
    )
    data[4:400] = b"\xff" * 396
    (tmp_path / "2.parquet").write_bytes(data)
    source = open_source(tmp_path, 16, cache_dir=tmp_path / "cache", held_out_share=0)
    assert len(source) == 1 and sum(source.skipped.values()) == 1
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.name.startswith(".")]


def test_what_is_missing_is_an_error_that_helps(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", thing=[1], caption=["a"])
    with pytest.raises(DataError, match=r"no image column .*'thing', 'caption'.*--image-key"):
        open_parquet(str(path), None, None, tmp_path)
    with pytest.raises(DataError, match=r"no caption column 'note'.*--caption-key"):
        open_parquet(str(path), "thing", Keys.parse("note"), tmp_path)
    with pytest.raises(DataError, match="no parquet file matches"):
        open_parquet(str(tmp_path / "*.pq"), None, None, tmp_path)
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"no file of .* can be read: damaged table"):
        open_parquet(str(tmp_path / "empty.parquet"), None, None, tmp_path)
    with pytest.raises(DataError, match="has no rows"):
        empty = pa.table({"jpg": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
        pq.write_table(empty, tmp_path / "none.parquet")
        open_parquet(str(tmp_path / "none.parquet"), None, None, tmp_path)
    with pytest.raises(DataError, match=r"no state\.json"):
        open_dataset(tmp_path, None, None)


def test_no_room_to_unpack_is_an_error_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.parquet", jpg=[jpeg(1)], caption=["a"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastclip.data.cache.os.replace", full)
    with pytest.raises(DataError, match=r"cannot be unpacked into .*No space left.*FASTCLIP_CACHE"):
        open_parquet(str(path), None, None, tmp_path)


def test_the_training_split_of_a_dataset_is_opened(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {name: formats.samples(n) for name, n in (("test", 2), ("train", 5))}
    splits = {}
    for name, wanted in parts.items():
        (tmp_path / name).mkdir()
        splits[name] = datasets.load_from_disk(str(formats.dataset(wanted, tmp_path / name)))
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    assert len(open_source(tmp_path / "all", 16, held_out_share=0)) == 5
    assert len(open_source(tmp_path / "all/test", 16, held_out_share=0)) == 2
    shards = splits["train"].select([3, 0, 1])
    shards.save_to_disk(tmp_path / "some", num_shards=2)
    records = open_dataset(tmp_path / "some", None, None)
    assert [records.captions(i).texts[0][-1] for i in range(3)] == ["3", "0", "1"]
