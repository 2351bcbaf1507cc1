"""Keep embeddings on disk, in clip-retrieval's layout, part by part, so that an interrupted run goes on.

    folder/img_emb/img_emb_0.npy            (n, D) of the pictures, of unit length
    folder/text_emb/text_emb_0.npy          (n, D) of the captions, where there are any
    folder/metadata/metadata_0.parquet      n rows: image_path, caption, index (place in the source)
    folder/embed.json                       what was embedded with what; the parts that are done, and what was skipped

With ten parts or more the numbers have leading zeros, so that their order by name is their order.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastclip.space.neighbours import nearest

_PLAN = "embed.json"
_COLUMNS = ("image_path", "caption", "index")
_KINDS = {"images": ("img_emb", ".npy"), "texts": ("text_emb", ".npy"), "metadata": ("metadata", ".parquet")}


class EmbeddingsError(ValueError):
    """A folder of embeddings that does not fit what is asked of it; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What is embedded with what: a folder is continued by a run with the same plan only."""

    model: str
    fingerprint: str  #: SHA-256 of the model's weights
    data: str
    dataset_type: str
    rows: int  #: pairs of the source, readable or not
    rows_per_part: int
    precision: str  #: of the encoders
    dtype: str  #: of the files
    columns: dict[str, str] = field(default_factory=dict)  #: further options that the source was opened with
    averaged: bool = False  #: whether a run's averaged weights were taken

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.rows // self.rows_per_part)

    def file(self, folder: Path, kind: str, part: int) -> Path:
        """Return the file of a part; kind is images, texts or metadata."""
        name, suffix = _KINDS[kind]
        return folder / name / f"{name}_{part:0{len(str(self.parts))}d}{suffix}"


class EmbeddingWriter:
    """Write parts into a folder; those that an earlier run with the same plan has written stay.

    Args:
        folder: where; made if it is not there.
        plan: what is embedded with what.

    Raises:
        EmbeddingsError: the folder holds embeddings of another plan, or other files.
        ModuleNotFoundError: pyarrow, which writes the metadata, is not installed.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        _require_pyarrow()
        self.folder, self.plan = folder, plan
        self._done: dict[int, dict[str, Any]] = {}
        if (folder / _PLAN).is_file():
            document = _read_plan(folder)
            before = {"averaged": False, **document["plan"]}  # earlier versions did not know them
            different = [key for key, value in asdict(plan).items() if before.get(key) != value]
            if different:
                was, now = before.get(different[0]), asdict(plan)[different[0]]
                raise EmbeddingsError(
                    f"{folder} holds embeddings that differ in {', '.join(different)} ({different[0]} was {was!r}, "
                    f"now {now!r}); choose another folder, or delete this one"
                )
            self._done = {int(number): part for number, part in document["parts"].items()}
        elif folder.is_dir() and any(folder.iterdir()):
            raise EmbeddingsError(f"{folder} holds other files; choose an empty folder or a new one")

    @property
    def missing(self) -> list[int]:
        """The parts that are still to be written."""
        return [part for part in range(self.plan.parts) if part not in self._done]

    @property
    def rows(self) -> int:
        """Rows written so far, by earlier runs too."""
        return sum(part["rows"] for part in self._done.values())

    @property
    def skipped_files(self) -> dict[str, str]:
        """Reason by file of what could not be embedded so far."""
        return {file: reason for part in self._done.values() for file, reason in part["skipped"].items()}

    @property
    def skipped(self) -> Counter[str]:
        """What could not be embedded so far, by reason."""
        return Counter(self.skipped_files.values())

    def write(
        self,
        part: int,
        images: Tensor | None,
        texts: Tensor | None,
        metadata: Mapping[str, Sequence[Any]],
        skipped: dict[str, str],
    ) -> None:
        """Write a part; it counts as done once all its files are on the disk.

        Args:
            part: its number.
            images, texts: (n, D), or None where there are none.
            metadata: columns of n values.
            skipped: reason by file of what is missing.
        """
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table(metadata)
        if table.num_rows:
            for kind, features in (("images", images), ("texts", texts)):
                if features is not None:
                    array = features.numpy().astype(self.plan.dtype)
                    _replace(
                        self.plan.file(self.folder, kind, part), lambda out, array=array: np.save(out, array)
                    )
            _replace(
                self.plan.file(self.folder, "metadata", part),
                lambda out: pyarrow.parquet.write_table(table, out),
            )
        self._done[part] = {"rows": table.num_rows, "skipped": skipped}
        document = {"format": 1, "plan": asdict(self.plan), "parts": self._done}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        _replace(self.folder / _PLAN, lambda out: out.write(text.encode()))


class Embeddings:
    """Read a folder of embeddings, written here or by clip-retrieval; rows stay on the disk until they are asked for.

    Raises:
        EmbeddingsError: there are none, or the files do not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = Plan(**_read_plan(folder)["plan"]) if (folder / _PLAN).is_file() else None
        self._images, self._texts, self._metadata = (_files(folder, kind) for kind in _KINDS)
        if not self._images and not self._texts:
            raise EmbeddingsError(
                f"{folder} holds no embeddings: expected img_emb/img_emb_0.npy or text_emb/…"
            )
        for files in (self._texts, self._metadata):
            if files and self._images and len(files) != len(self._images):
                raise EmbeddingsError(
                    f"{folder} has {len(self._images)} files in img_emb but {len(files)} in {files[0].parent.name}"
                )

    @property
    def width(self) -> int:
        """The numbers of a point."""
        return int(np.load((self._images or self._texts)[0], mmap_mode="r").shape[1])

    def parts(self, side: str) -> Iterator[Tensor]:
        """Yield the features (n, D) of every part, fp32; side is images or texts."""
        files = self._images if side == "images" else self._texts
        if not files:
            raise EmbeddingsError(f"{self.folder} holds no embeddings of {side}")
        for file in files:
            yield torch.from_numpy(np.load(file, mmap_mode="r").astype(np.float32))

    def search(self, queries: Tensor, k: int, side: str = "images") -> tuple[Tensor, list[list[Row]]]:
        """Return the k nearest rows of every query (Q, D): cosines (Q, k) and rows."""
        best = torch.empty(len(queries), 0)
        places = torch.empty(len(queries), 0, dtype=torch.int64)
        start = 0
        for keys in self.parts(side):
            cosines, index = nearest(queries, keys, min(k, len(keys)))
            best, places = torch.cat([best, cosines], 1), torch.cat([places, index + start], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            places, start = places.gather(1, order), start + len(keys)
        rows = iter(self.rows(places.flatten().tolist()))
        return best, [[next(rows) for _ in range(places.shape[1])] for _ in range(len(queries))]

    def rows(self, places: Sequence[int]) -> list[Row]:
        """Return what is known of some rows; every file of metadata is read once at most."""
        import pyarrow.parquet

        known: dict[int, Row] = {}
        start = 0
        for file in self._metadata:
            stop = start + pyarrow.parquet.read_metadata(file).num_rows
            mine = sorted({place for place in places if start <= place < stop})
            if mine:
                columns = [c for c in _COLUMNS if c in pyarrow.parquet.read_schema(file).names]
                table = pyarrow.parquet.read_table(file, columns=columns).take(
                    [place - start for place in mine]
                )
                for place, values in zip(mine, table.to_pylist(), strict=True):
                    known[place] = Row(
                        str(values.get("image_path") or ""),
                        str(values.get("caption") or ""),
                        values.get("index"),
                    )
            start = stop
        return [known.get(place, Row("", "", None)) for place in places]


@dataclass(frozen=True)
class Row:
    """What is known of an embedded pair."""

    image_path: str
    caption: str
    index: int | None  #: place in the source it came from


def fingerprint(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's weights."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
        if document["format"] != 1 or not isinstance(document["parts"], dict):
            raise KeyError("format")
        return document
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingsError(
            f"{folder / _PLAN} is damaged ({error}); delete the folder and embed anew"
        ) from error


def _files(folder: Path, kind: str) -> list[Path]:
    name, suffix = _KINDS[kind]
    found = (folder / name).glob(f"{name}_*{suffix}")
    return sorted(found, key=lambda file: int(file.stem.rpartition("_")[2]))


def _replace(path: Path, write: Any) -> None:
    """Write a file beside its place and move it there, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with open(aside, "wb") as out:
        write(out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, path)


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "metadata of embeddings needs pyarrow, not installed here; run: pip install 'fastclip-kernels[images]'"
        ) from None
