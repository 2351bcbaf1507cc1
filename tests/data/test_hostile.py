"""Bad data never stops a run and never hides, in whatever format it comes."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from fastclip.data import DataError, PairSource, open_source
from fastclip.train.feed import Batch, Cursor, batches
from tests.data import formats
from tests.data.formats import Sample, jpeg
from tests.data.hostile import hostile, reasons, usable

KINDS = hostile()


def epoch(source: PairSource, batch_size: int = 8, *, rank: int = 0, ranks: int = 1) -> list[Batch]:
    """Return the batches of a little more than an epoch, whatever share of the pairs is bad."""
    count = len(source) // (batch_size * ranks) + 2
    feed = batches(
        source,
        batch_size,
        seed=1,
        start=Cursor(),
        count=count,
        workers=2,
        rank=rank,
        world_size=ranks,
        max_bad_share=1,
    )
    return list(feed)


def mixed(missing: bool = True) -> list[Sample]:
    """Return every hostile sample among twenty good ones, and one without its picture."""
    good = [Sample(f"good-{s.name}", s.picture, s.caption) for s in formats.samples(20)]
    wanted = [kind.sample for kind in KINDS] + good
    return wanted + [Sample("missing.jpg", None, b"nothing to see")] * missing


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_kind_through_every_format(name: str, tmp_path: Path) -> None:
    source = open_source(formats.FORMATS[name](mixed(), tmp_path), 16, cache_dir=tmp_path, held_out_share=0)
    pairs = source.fetch(range(len(source)), seed=0, epoch=0)
    assert len(pairs) == len(usable(KINDS)) + 20 == len(pairs.images)
    expected = reasons(KINDS)
    lost = {"csv": "no such file", "tsv": "no such file", "parquet of paths": "no such file", "folder": None}
    reason = lost.get(name, "no picture")
    assert source.skipped == expected + Counter([reason] if reason else [])
    assert len(source.skipped_files) == source.skipped.total()
    if name in ("folder", "webdataset", "csv"):
        by_file = {
            where.rsplit("/", 1)[-1].rsplit(": ")[-1]: why for where, why in source.skipped_files.items()
        }
        for kind in KINDS:
            if kind.reason and "caption" not in kind.sample.name:
                assert by_file[kind.sample.name] == kind.reason


@pytest.mark.parametrize("name", formats.FORMATS)
def test_batches_stay_full_and_runs_repeat(name: str, tmp_path: Path) -> None:
    place = formats.FORMATS[name](mixed(), tmp_path)
    runs = [epoch(open_source(place, 16, cache_dir=tmp_path)) for _ in range(2)]
    for first, again in zip(*runs, strict=True):
        assert len(first.pairs) == 8 == len(first.pairs.images)
        assert first.pairs.captions == again.pairs.captions
        assert torch.equal(first.pairs.images, again.pairs.images)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_data_without_one_good_pair_end_with_an_error(name: str, tmp_path: Path) -> None:
    bad = [Sample(f"{i:03}.jpg", b"<html>", b"caption") for i in range(30)]
    source = open_source(formats.FORMATS[name](bad, tmp_path), 16, cache_dir=tmp_path, held_out_share=0)
    for rank in (0, 1):  # each by itself: none waits for another
        with pytest.raises(DataError, match=r"cannot be read.*HTML or text.*Repair the data"):
            epoch(source, rank=rank, ranks=2)


def test_a_shard_that_is_all_bad_is_shared_by_all_ranks(tmp_path: Path) -> None:
    wanted = [
        Sample(s.name, b"" if i < 20 else s.picture, s.caption) for i, s in enumerate(formats.samples(60))
    ]
    source = open_source(formats.shards(wanted, tmp_path, each=20), 16, cache_dir=tmp_path, held_out_share=0)
    for rank in range(3):
        assert [len(batch.pairs) for batch in epoch(source, 5, rank=rank, ranks=3)] == [5] * 6
    assert source.skipped == {"empty file": 20}


def test_too_many_bad_pairs_stop_the_run_with_their_reasons(tmp_path: Path) -> None:
    wanted = [
        Sample(s.name, b"" if i % 4 == 0 else s.picture, s.caption) for i, s in enumerate(formats.samples(80))
    ]
    place = formats.shards(wanted, tmp_path)
    source = open_source(place, 16, cache_dir=tmp_path, held_out_share=0)
    settings = {"seed": 0, "start": Cursor(), "count": 40, "workers": 1}
    with pytest.raises(DataError, match=r"more than --max-bad-share 0\.1 of them.*empty file \(\d+\).*\.jpg"):
        list(batches(source, 16, **settings))  # type: ignore[arg-type]
    assert len(list(batches(source, 16, **settings, max_bad_share=0.4))) == 40  # type: ignore[arg-type]


def test_too_much_that_is_unusable_at_first_sight_is_an_error_at_once(tmp_path: Path) -> None:
    place = formats.folder(formats.samples(20), tmp_path)
    for file in list(tmp_path.glob("*.txt"))[:5]:
        file.unlink()
    with pytest.raises(
        DataError, match=r"5 of the 20 pairs .*--max-bad-share 0\.1: no caption \(5\); for example"
    ):
        open_source(place, 16, max_bad_share=0.1, held_out_share=0)
    assert len(open_source(place, 16, max_bad_share=0.3, held_out_share=0)) == 15


def test_a_pipe_or_a_device_in_place_of_a_picture_is_not_read(tmp_path: Path) -> None:
    table = formats.table(formats.samples(3), tmp_path)
    os.mkfifo(tmp_path / "pictures/fifo.jpg")
    with open(table, "a") as rows:
        rows.write("pictures/fifo.jpg,waits for ever\n/dev/zero,never ends\n")
    source = open_source(table, 16, held_out_share=0)
    assert len(source.fetch(range(5), seed=0, epoch=0)) == 3
    assert source.skipped == {"not a regular file": 2}


def test_a_tar_cut_short_loses_only_its_end(tmp_path: Path) -> None:
    formats.shards(formats.samples(10), tmp_path, each=10)
    whole = tmp_path / "000.tar"
    with tarfile.open(whole) as tar:
        seventh = tar.getmember("00006.jpg")
    data = whole.read_bytes()
    whole.write_bytes(data[: seventh.offset_data + seventh.size // 2])
    source = open_source(whole, 16, cache_dir=tmp_path, held_out_share=0)
    assert source.fetch(range(6), seed=0, epoch=0).captions == [f"picture number {i}" for i in range(6)]
    assert len(source) == 6 and source.skipped == {"truncated tar": 1}


def test_a_damaged_tar_loses_only_what_is_damaged(tmp_path: Path) -> None:
    formats.shards(formats.samples(10), tmp_path, each=10)
    shard = tmp_path / "000.tar"
    with tarfile.open(shard) as tar:
        at = tar.getmember("00003.jpg").offset
    data = bytearray(shard.read_bytes())
    data[at : at + 600] = b"?" * 600
    shard.write_bytes(data)
    source = open_source(shard, 16, cache_dir=tmp_path, held_out_share=0)
    captions = source.fetch(range(len(source)), seed=0, epoch=0).captions
    assert captions == [f"picture number {i}" for i in range(10) if i != 3]
    assert source.skipped == {"damaged tar": 1, "no picture": 1}


def test_missing_shards_are_an_error_that_names_them(tmp_path: Path) -> None:
    place = formats.shards(formats.samples(30), tmp_path, each=5)
    for number in (1, 4):
        (tmp_path / f"00{number}.tar").unlink()
    said = r"2 of the 6 shards cannot be opened: \S+/001\.tar \(no such file\), \S+/004\.tar .*: \S+/\*\.tar"
    for spec in (place, "::".join(f"{tmp_path}/00{number}.tar" for number in range(6))):
        with pytest.raises(DataError, match=said):
            open_source(spec, 16, cache_dir=tmp_path, held_out_share=0)
    (tmp_path / "shards.txt").write_text("".join(f"{tmp_path}/00{number}.tar\n" for number in range(6)))
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / "shards.txt", 16, cache_dir=tmp_path, held_out_share=0)
    assert len(open_source(f"{tmp_path}/*.tar", 16, cache_dir=tmp_path, held_out_share=0)) == 20


def test_many_missing_shards_are_counted_and_some_of_them_named(tmp_path: Path) -> None:
    formats.shards(formats.samples(3), tmp_path)
    with pytest.raises(DataError, match=r"99 of the 100 shards.*/005\.tar \(no such file\) and 94 more"):
        open_source(f"{tmp_path}/{{000..099}}.tar", 16, cache_dir=tmp_path)


def test_what_a_cut_shard_has_lost_counts_as_bad(tmp_path: Path) -> None:
    """Of 60 samples in six shards, one shard ends in its third sample, and one is empty."""
    place = formats.shards(formats.samples(60), tmp_path, each=10)
    with tarfile.open(tmp_path / "001.tar") as tar:
        third = tar.getmember("00012.jpg")
    cut = (tmp_path / "001.tar").read_bytes()[: third.offset_data + third.size // 2]
    (tmp_path / "001.tar").write_bytes(cut)
    (tmp_path / "004.tar").write_bytes(b"")
    for _ in range(2):  # the index made, and read
        source = open_source(place, 16, cache_dir=tmp_path, held_out_share=0)
        assert len(source) == 42 and source.skipped == {"truncated tar": 2} and source.lost == 16
    with pytest.raises(
        DataError, match=r"18 of the 60 pairs.*truncated tar \(2\), with which about 16 more are lost"
    ):
        open_source(place, 16, cache_dir=tmp_path, held_out_share=0, max_bad_share=0.25)
    assert len(open_source(place, 16, cache_dir=tmp_path, held_out_share=0, max_bad_share=0.3)) == 42


def test_duplicate_keys_give_the_first_sample(tmp_path: Path) -> None:
    one, two = formats.samples(2)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for sample in (one, Sample(one.name, two.picture, two.caption), two):
            assert sample.picture is not None
            formats.add(tar, sample.name, sample.picture)
            formats.add(tar, sample.name.replace(".jpg", ".txt"), sample.caption)
    source = open_source(tmp_path / "a.tar", 16, cache_dir=tmp_path, held_out_share=0)
    assert source.fetch([0, 1], seed=0, epoch=0).captions == ["picture number 0", "picture number 1"]
    assert source.skipped == {"duplicate key": 1}


def test_names_that_are_no_text_can_be_read_and_listed(tmp_path: Path) -> None:
    good = formats.samples(1)[0]
    for name, data in ((b"caf\xe9\n", good.picture), (b"\xff\t", b"")):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".jpg"))).write_bytes(data or b"")
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".txt"))).write_bytes(b"text")
    source = open_source(tmp_path, 16, held_out_share=0)
    assert source.fetch([0, 1], seed=0, epoch=0).captions == ["text"]
    (listed,) = source.skipped_files
    assert listed == f"{tmp_path}/\\xdcff\\x09.jpg"
    listed.encode()


def test_caption_files_without_end_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("folder", "tarindex"):
        monkeypatch.setattr(f"fastclip.data.{module}.MAX_CAPTION_FILE", 100)
    wanted = [*formats.samples(3), Sample("x.jpg", jpeg(1), b"word " * 100)]
    for name in ("folder", "webdataset"):
        (tmp_path / name).mkdir()
        place = formats.FORMATS[name](wanted, tmp_path / name)
        source = open_source(place, 16, cache_dir=tmp_path / "cache", held_out_share=0)
        assert len(source.fetch(range(len(source)), seed=0, epoch=0)) == 3
        assert any("file too large" in reason for reason in source.skipped)
