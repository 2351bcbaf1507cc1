"""Give pictures from files, a batch at a time: a folder of class folders, or any list of files."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fastclip.data.picture import SUFFIXES, UnreadableError, decode


def read_class_names(file: str | Path) -> dict[str, str]:
    """Return the readable class name of every folder from a JSON file, {"folder": "class name", …}.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        names = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"class names in {file} cannot be read as JSON ({error})") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'class names in {file} must be an object, {{"folder": "class name", …}}')
    return names


def list_pictures(folder: Path) -> list[Path]:
    """Return every picture file below `folder`, in a fixed order."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += [
            Path(parent, name)
            for name in sorted(names)
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return found


class PictureFiles:
    """A list of picture files, decoded to squares when asked for; what cannot be read is counted.

    Args:
        files: the pictures.
        image_size: side of the squares, in pixels; the centre square of a picture is taken.
    """

    def __init__(self, files: Sequence[Path], image_size: int) -> None:
        self.files = list(files)
        self.image_size = image_size
        self.skipped: Counter[str] = Counter()  #: unreadable pictures by reason
        self.skipped_files: dict[str, str] = {}  #: reason by file
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, places: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return the readable ones of some pictures, uint8 (b, 3, S, S), and their places, int64 (b,)."""
        good = []
        for place in places:
            try:
                good.append((place, decode(self.files[place], self.image_size)))
            except UnreadableError as error:
                self._skip(str(self.files[place]), str(error))
        images = torch.empty(len(good), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for row, (_, pixels) in enumerate(good):
            images[row] = torch.from_numpy(pixels.copy())
        return images, torch.tensor([place for place, _ in good], dtype=torch.int64)

    def batches(
        self, batch_size: int, *, workers: int = 2, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pictures uint8 (b, 3, S, S) and their places in `files`, int64 (b,), each once and in order.

        Args:
            batch_size: files read at a time; unreadable ones are left out of their batch, an empty batch is not given.
            workers: threads that decode, each a batch ahead.
            rank, ranks: of `ranks` that take the batches in turns, give those of this one.
        """
        starts = iter(range(rank * batch_size, len(self.files), ranks * batch_size))

        def read(start: int) -> tuple[Tensor, Tensor]:
            return self.read(range(start, min(start + batch_size, len(self.files))))

        with ThreadPoolExecutor(max(1, workers)) as pool:
            ahead = [pool.submit(read, start) for start in islice(starts, max(1, workers) + 1)]
            while ahead:
                images, places = ahead.pop(0).result()
                ahead += [pool.submit(read, start) for start in islice(starts, 1)]
                if len(places):
                    yield images, places

    def _skip(self, file: str, reason: str) -> None:
        with self._lock:  # several threads read
            if file not in self.skipped_files:
                self.skipped_files[file] = reason
                self.skipped[reason] += 1


class ClassFolder:
    """A folder that holds one folder of pictures for every class.

    Args:
        path: the folder; pictures may lie at any depth in their class's folder.
        image_size: side of the squares pictures are cut to, in pixels.
        names: readable class name by folder name, where folders have codes for names. Default: the folder's name,
            underscores as spaces.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two classes with pictures, a folder that `names` lacks, or one name for two.
    """

    def __init__(self, path: str | Path, image_size: int, *, names: Mapping[str, str] | None = None) -> None:
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f"{path} is no folder: give one with a folder of pictures for every class"
            )
        found = {entry.name: list_pictures(entry) for entry in sorted(path.iterdir()) if entry.is_dir()}
        folders = [name for name, files in found.items() if files]
        if len(folders) < 2:
            raise ValueError(
                f"{path} has pictures in {len(folders)} of its folders; zero-shot classification needs a folder of "
                "pictures for each of at least two classes"
            )
        missing = [] if names is None else [folder for folder in folders if folder not in names]
        if missing:
            raise ValueError(
                f"names has no entry for {len(missing)} folders of {path}, the first is {missing[0]!r}"
            )
        readable = [names[f] if names is not None else f.replace("_", " ") for f in folders]
        double = [name for name, count in Counter(readable).items() if count > 1]
        if double:
            raise ValueError(f"two folders of {path} have the class name {double[0]!r}; names must differ")
        self.names = tuple(readable)  #: of the C classes
        self.pictures = PictureFiles([file for folder in folders for file in found[folder]], image_size)
        sizes = torch.tensor([len(found[folder]) for folder in folders])
        self.labels = torch.arange(len(folders)).repeat_interleave(sizes)  #: int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def files(self) -> list[Path]:
        """The N picture files."""
        return self.pictures.files

    @property
    def skipped(self) -> Counter[str]:
        """Unreadable pictures, by reason."""
        return self.pictures.skipped

    @property
    def skipped_files(self) -> dict[str, str]:
        """Reason by file."""
        return self.pictures.skipped_files

    def batches(
        self, batch_size: int, *, workers: int = 2, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pictures uint8 (b, 3, S, S) and their classes, int64 (b,); as `PictureFiles.batches`."""
        for images, places in self.pictures.batches(batch_size, workers=workers, rank=rank, ranks=ranks):
            yield images, self.labels[places]
