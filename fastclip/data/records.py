"""Define what the formats on disk have in common: numbered records of a picture's bytes and its captions.

A format is a list of where things lie. It opens no picture before its turn, keeps its list in arrays (100 million
Python strings would take 10 GiB more than their letters), and may be read by many threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable

import numpy as np

from fastclip.data.captions import Captions


class Records(ABC):
    """Hold N records. What is known to be unusable when the list is made is left out and told in ``skipped``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: dict[str, str] = {}  #: reason by file, row or member
        self.lost = 0  #: records that no name is left of, an estimate: the end of a tar that was cut short

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def picture(self, i: int) -> bytes:
        """Return the file of record ``i``'s picture. Raises UnreadableError."""

    @abstractmethod
    def captions(self, i: int) -> Captions:
        """Return the captions of record ``i``. Raises UnreadableError."""

    @abstractmethod
    def where(self, i: int) -> str:
        """Return a line that lets a person find record ``i``."""


class Texts:
    """Hold many strings in two arrays."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, text: str) -> None:
        """Add one at the end; what a file system made of bytes that are not UTF-8 survives."""
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __getitem__(self, i: int) -> str:
        return self._bytes[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


class Groups:
    """Number things by what they have in common: group g holds ``members(g)``, in the order they came."""

    def __init__(self, keys: np.ndarray) -> None:
        """Group positions of equal ``keys``, uint64 (N,); groups are numbered by their first position."""
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        group = rank[group]
        self._order = np.argsort(group, kind="stable")
        self._starts = np.searchsorted(group[self._order], np.arange(len(first) + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def members(self, g: int) -> np.ndarray:
        """Return the positions of group ``g``, ascending."""
        return self._order[self._starts[g] : self._starts[g + 1]]
