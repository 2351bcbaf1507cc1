"""Write the same samples in every format that pairs can be read from."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Sample:
    """Hold a picture file and a caption, as bytes: either may be anything. No picture: its file is missing."""

    name: str
    picture: bytes | None
    caption: bytes


def jpeg(seed: int, width: int = 40, height: int = 30, **options: object) -> bytes:
    """Return a smooth picture of its own for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def samples(count: int) -> list[Sample]:
    """Return good samples whose names are in order."""
    return [Sample(f"{i:05}.jpg", jpeg(i), f"picture number {i}".encode()) for i in range(count)]


def folder(wanted: Sequence[Sample], root: Path) -> Path:
    for sample in wanted:
        if sample.picture is not None:
            (root / sample.name).write_bytes(sample.picture)
        (root / sample.name).with_suffix(".txt").write_bytes(sample.caption)
    return root


def shards(wanted: Sequence[Sample], root: Path, each: int = 7) -> str:
    """Write tars of `each` samples; return the braces that name them."""
    number = 0
    for number, at in enumerate(range(0, len(wanted), each)):
        with tarfile.open(root / f"{number:03}.tar", "w") as tar:
            for sample in wanted[at : at + each]:
                if sample.picture is not None:
                    add(tar, sample.name, sample.picture)
                add(tar, str(Path(sample.name).with_suffix(".txt")), sample.caption)
    return f"{root}/{{000..{number:03}}}.tar"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def table(wanted: Sequence[Sample], root: Path, name: str = "t.csv", separator: str = ",") -> Path:
    (root / "pictures").mkdir()
    rows = io.BytesIO()
    text = io.TextIOWrapper(rows, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(["filepath", "title"])
    for sample in wanted:
        if sample.picture is not None:
            (root / "pictures" / sample.name).write_bytes(sample.picture)
        writer.writerow([f"pictures/{sample.name}", sample.caption.decode("utf-8", "surrogateescape")])
    text.flush()
    (root / name).write_bytes(rows.getvalue())
    return root / name


def tsv(wanted: Sequence[Sample], root: Path) -> Path:
    return table(wanted, root, "t.tsv", "\t")


def parquet_of_paths(wanted: Sequence[Sample], root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for sample in wanted:
        if sample.picture is not None:
            (root / sample.name).write_bytes(sample.picture)
    columns = {"image": [sample.name for sample in wanted], "caption": texts(wanted)}
    pq.write_table(pa.table(columns), root / "t.parquet")
    return root / "t.parquet"


def parquet_of_bytes(wanted: Sequence[Sample], root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, at in enumerate(range(0, len(wanted), 9)):
        some = wanted[at : at + 9]
        columns = {"jpg": pa.array([sample.picture for sample in some], pa.binary()), "caption": texts(some)}
        pq.write_table(pa.table(columns), root / f"{number:02}.parquet", row_group_size=4)
    return root


def dataset(wanted: Sequence[Sample], root: Path) -> Path:
    import datasets
    import pyarrow as pa

    pictures = [s.picture if s.picture is None else {"bytes": s.picture, "path": None} for s in wanted]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    content = pa.table({"image": pa.array(pictures, kind), "caption": texts(wanted)})
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    made = datasets.Dataset(content.replace_schema_metadata(features.arrow_schema.metadata))
    made.save_to_disk(root / "data")
    return root / "data"


def texts(wanted: Sequence[Sample]):  # type: ignore[no-untyped-def]
    """Return the captions as a column of strings, whatever bytes they are."""
    import pyarrow as pa

    return pa.array([sample.caption for sample in wanted], pa.binary()).view(pa.string())


#: Format -> what writes samples into an empty folder and returns the path to open.
FORMATS: dict[str, Callable[[Sequence[Sample], Path], Path | str]] = {
    "folder": folder,
    "webdataset": shards,
    "csv": table,
    "tsv": tsv,
    "parquet of paths": parquet_of_paths,
    "parquet of bytes": parquet_of_bytes,
    "dataset on disk": dataset,
}
