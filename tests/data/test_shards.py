"""Tar shards: the index agrees with tarfile, names expand, and nothing is run or fetched."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastclip.data import DataError, open_source
from fastclip.data.captions import Captions, Keys
from fastclip.data.shards import ShardRecords, expand
from fastclip.data.tarindex import index_tar
from tests.data.formats import add, jpeg

NAMES = st.text("abcé/0_-", min_size=1, max_size=130).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and "//" not in name
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(st.binary(max_size=1100), st.binary(max_size=5)), max_size=5),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_every_sample_is_where_the_index_says(
    tmp_path: Path, samples: dict[str, tuple[bytes, bytes]], kind: int
) -> None:
    path = tmp_path / "a.tar"
    written = []
    with tarfile.open(path, "w", format=kind) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, (picture, caption) in samples.items():
            try:
                add(tar, f"{name}.JPG", picture)
                add(tar, f"{name}.txt", caption)
            except ValueError:  # too long for this kind of archive
                continue
            written.append(name)
    entries, skipped = index_tar(str(path))
    data = path.read_bytes()
    found = [(data[e["picture"] :][: e["sizes"][0]], data[e["txt"] :][: e["sizes"][1]]) for e in entries]
    assert found == [samples[name] for name in written if not name.rpartition("/")[2].startswith(".")]
    assert not [why for why in skipped.values() if "tar" in why]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.integers(0, 9000), st.binary(max_size=1500), st.integers(0, 10_000))
def test_no_damage_raises_anything(tmp_path: Path, at: int, noise: bytes, length: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            add(tar, f"{'long' * 40}{number}.jpg", bytes(range(200)))
            add(tar, f"{'long' * 40}{number}.txt", b"caption")
    data = buffer.getvalue()
    (tmp_path / "a.tar").write_bytes((data[:at] + noise + data[at + len(noise) :])[:length])
    entries, _ = index_tar(str(tmp_path / "a.tar"))
    assert len(entries) <= 4
    for entry in entries:
        assert 0 < entry["picture"] <= length and 0 < entry["txt"] <= length


def test_sizes_beyond_the_octal_field_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "a.jpg", b"x" * 700)
        add(tar, "a.txt", b"text")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 256 + sum(data[156:512]))
    (tmp_path / "a.tar").write_bytes(data)
    entries, skipped = index_tar(str(tmp_path / "a.tar"))
    assert entries["sizes"][0].tolist() == [700, 4, 0] and not skipped


def test_members_of_a_sample_need_not_stand_together(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for suffix in ("txt", "cls", "seg.png", "jpg"):
            for name in ("dir.v2/one", "dir.v2/two"):
                add(tar, f"{name}.{suffix}", jpeg(1) if suffix == "jpg" else b"hello")
        add(tar, "._one.jpg", b"a note of the Finder")
    entries, skipped = index_tar(str(tmp_path / "a.tar"))
    assert len(entries) == 2 and not skipped


def test_archives_one_behind_the_other_are_both_read(tmp_path: Path) -> None:
    parts = []
    for number in range(2):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add(tar, f"{number}.jpg", b"x" * 70_000)
            add(tar, f"{number}.txt", b"text")
        parts.append(buffer.getvalue())
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    assert len(index_tar(str(tmp_path / "a.tar"))[0]) == 2
    (tmp_path / "b.tar").write_bytes(parts[0] + bytes(200_000))
    entries, skipped = index_tar(str(tmp_path / "b.tar"))
    assert len(entries) == 1 and list(skipped.values()) == ["truncated tar"]


def test_captions_of_a_sample(tmp_path: Path) -> None:
    meta = {"caption": "from json", "recaption": ["r one", "r two"]}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "both.jpg", jpeg(1))
        add(tar, "both.txt", b"alt text\nof two lines")
        add(tar, "both.json", json.dumps(meta).encode())
        add(tar, "json.jpg", jpeg(1))
        add(tar, "json.json", json.dumps({"captions": ["a", "b"], "probabilities": [0.1, 0.9]}).encode())
    shards = [str(tmp_path / "a.tar")]
    records = ShardRecords(shards, cache_dir=tmp_path)
    assert records.captions(0).texts == ("alt text of two lines",)
    assert records.captions(1) == Captions(("a", "b"), (0.1, 0.9))
    assert records.where(1) == f"{shards[0]}: json.jpg"
    named = ShardRecords(shards, Keys.parse("caption=1,recaption=1"), cache_dir=tmp_path)
    assert named.captions(0) == Captions(("from json", "r one", "r two"), (1.0, 0.5, 0.5))


def test_an_index_is_made_anew_when_its_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shard(count: int) -> int:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for number in range(count):
                add(tar, f"{number}.jpg", jpeg(number))
                add(tar, f"{number}.txt", b"text")
        return len(ShardRecords([str(tmp_path / "a.tar")], cache_dir=tmp_path / "cache"))

    assert [shard(3), shard(5)] == [3, 5]
    monkeypatch.setattr("fastclip.data.shards.index_tar", None)  # from here on, only the cache
    assert len(ShardRecords([str(tmp_path / "a.tar")], cache_dir=tmp_path / "cache")) == 5
    monkeypatch.undo()
    for damaged in (tmp_path / "cache").rglob("*.bin"):
        damaged.write_bytes(damaged.read_bytes()[:-36])
    assert len(ShardRecords([str(tmp_path / "a.tar")], cache_dir=tmp_path / "cache")) == 5


def test_many_shards_hold_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        add(tar, "a.jpg", jpeg(1))
        add(tar, "a.txt", b"text")
    for number in range(1, 60):
        os.link(tmp_path / "000.tar", tmp_path / f"{number:03}.tar")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(2):  # once made, once from the cache
        records = ShardRecords(expand(f"{tmp_path}/{{000..059}}.tar"), cache_dir=tmp_path)
        assert records.captions(59).texts == ("text",) and len(records) == 60
    if before:
        assert len(os.listdir("/proc/self/fd")) < before + 10
    monkeypatch.setattr("fastclip.data.shards._MOST_MAPS", 59)
    assert ShardRecords(expand(f"{tmp_path}/{{000..059}}.tar"), cache_dir=tmp_path).captions(59).texts == (
        "text",
    )


def test_without_a_cache_the_index_is_made_every_time(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.jpg", jpeg(1))
        add(tar, "a.txt", b"text")
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="FASTCLIP_CACHE"):
        assert len(ShardRecords([str(tmp_path / "a.tar")], cache_dir=tmp_path / "file")) == 1


def test_names_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s/002.tar", "s/010.tar", "s/readme", "t/a.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert expand("s/{008..011}.tar") == [f"s/{n:03}.tar" for n in (8, 9, 10, 11)]
    assert expand("s/{9..11}.tar") == ["s/9.tar", "s/10.tar", "s/11.tar"]
    assert expand("{s,t}/{a,b}.tar") == ["s/a.tar", "s/b.tar", "t/a.tar", "t/b.tar"]
    assert expand("s/*.tar") == expand("s") == ["s/002.tar", "s/010.tar"]
    assert expand("s/002.tar::t/*.tar") == ["s/002.tar", "t/a.tar"]
    (tmp_path / "list.txt").write_text("# shards\ns/010.tar\n\nt/a.tar\n")
    assert expand("list.txt") == ["s/010.tar", "t/a.tar"]
    (tmp_path / "odd{1,2}.tar").write_bytes(b"")
    assert expand("odd{1,2}.tar") == ["odd{1,2}.tar"]
    with pytest.raises(DataError, match=r"no shard matches u/\*\.tar"):
        expand("u/*.tar")
    with pytest.raises(DataError, match="more than a million"):
        expand("{0..1000000}.tar")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pipe:touch owned", "would run a shell command"),
        ("a.tar::pipe:touch owned", "would run a shell command"),
        ("s3://bucket/{000..100}.tar", "is a URL.*download"),
        ("https://example.org/a.tar", "is a URL.*download"),
        ("shard.tar.gz", "compressed as a whole.*unpack"),
        ("gone/{0..3}.tar", r"4 of the 4 shards cannot be opened: gone/0\.tar \(no such file\)"),
    ],
)
def test_what_is_no_file_is_refused(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shard.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        open_source(spec, 16, cache_dir=tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_list_of_shards_cannot_smuggle_a_command_in(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/owned\n")
    with pytest.raises(DataError, match="would run a shell command"):
        open_source(tmp_path / "list.txt", 16)
