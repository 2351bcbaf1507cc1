"""List what a run could not read, as it goes: skipped.txt in the run's folder, a file and its reason on each line."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from fastclip.data.source import PairSource
from fastclip.train.checkpoint.ranks import gather
from fastclip.train.distributed import World

logger = logging.getLogger("fastclip.train")


class SkippedFiles:
    """List what any rank had to skip, each file once. Rank 0 keeps the list; it hears of the others by `gather`.

    The list grows as files are skipped, so it is there however the run ends. A resumed run adds to it.

    Args:
        source: the pairs, which name what they skip.
        world: the ranks that train together.
        path: of the list; None keeps it in memory.

    Attributes:
        files: reason by file; empty on other ranks than the first.
        counts: files by reason; empty on other ranks than the first.
    """

    def __init__(self, source: PairSource, world: World, path: Path | None) -> None:
        self.source, self.world, self.path = source, world, path
        self.files: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._seen = (
            0 if world.is_main else len(source.skipped_files)
        )  # all know these; the first rank lists them
        self._unwritten: list[str] = []
        self._begun = self._warned = False
        if world.is_main and path is not None and (source.skipped or source.lost):
            logger.warning("warning: %s", _known(source))

    @property
    def is_waiting(self) -> bool:
        """Whether this rank has skipped something that only `gather` will list."""
        return not self.world.is_main and len(self.source.skipped_files) > self._seen

    def note(self) -> None:
        """List what this rank has skipped since it was asked last, if it is the first; others keep it for `gather`."""
        if self.world.is_main:
            self._add(self._news())

    def gather(self) -> None:
        """List what all ranks have skipped since they were asked last. Every rank must call this."""
        everyones = gather(self._news())
        if self.world.is_main:
            for news in everyones:
                self._add(news)

    def resume(self, counts: Mapping[str, int]) -> None:
        """Go on with the list in the run's folder.

        Args:
            counts: those in the checkpoint. The list can hold more, found after it was written, or less: that of a
                run which has moved to another folder. The larger number holds.
        """
        if not self.world.is_main:
            return
        self._begun = True
        if self.path is not None:
            self.files = _read(self.path)
        self._add(self._news())  # what the source knew from the start is in `counts` too
        self.counts = Counter(counts) | Counter(self.files.values())

    def _news(self) -> list[tuple[str, str]]:
        files = self.source.skipped_files
        if len(files) == self._seen:
            return []
        news = list(islice(files.items(), self._seen, None))  # in one go: threads of the feed add to it
        self._seen += len(news)
        return news

    def _add(self, news: Iterable[tuple[str, str]]) -> None:
        for file, reason in news:
            if file not in self.files:
                self.files[file] = reason
                self.counts[reason] += 1
                self._unwritten.append(f"{file}\t{reason}\n")
        if self.path is not None and self._unwritten:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab" if self._begun else "wb") as file:
                file.write("".join(self._unwritten).encode())
        except OSError as error:  # tried again with the next ones
            if not self._warned:
                logger.warning("warning: cannot list skipped files (%s)", error)
            self._warned = True
            return
        self._begun = True
        self._unwritten.clear()


def _known(source: PairSource) -> str:
    """Say what is known to be unusable before training begins."""
    counts = ", ".join(f"{reason} ({n:,})" for reason, n in source.skipped.most_common())
    lost = f", and about {source.lost:,} more pairs are lost in shards that are cut short or damaged"
    return (
        f"{source.skipped.total():,} pairs or files of {source.name} cannot be used: {counts}{lost * bool(source.lost)}"
        "; skipped.txt names them"
    )


def _read(path: Path) -> dict[str, str]:
    """Return reason by file; take a last line away that was cut short, so that the next begins on its own."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
    lines = whole.decode(errors="replace").splitlines()
    return {file: reason for file, tab, reason in (line.rpartition("\t") for line in lines) if tab}
