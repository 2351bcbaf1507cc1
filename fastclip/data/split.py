"""Keep some of a user's records for validation: what every source of numbered records has in common."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import Counter

import numpy as np

from fastclip.data.source import HeldOut, PairSource, first_of, permutation

MAX_HELD_OUT = 1000  # records, unless all are kept


class SplitSource(PairSource):
    """Divide N records into training pairs and those kept for validation.

    Args:
        name: of the data.
        image_size: side of the pictures, in pixels.
        count: N.
        seed: chooses the records for validation.
        held_out_share: their share, at most 1,000 of them; 0 keeps none, 1 all.
        shuffled_captions: caption every training record by another one; the control.
        skipped: what was left out of the N, reason by file.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        count: int,
        *,
        seed: int,
        held_out_share: float,
        shuffled_captions: bool,
        skipped: dict[str, str],
    ) -> None:
        if not 0 <= held_out_share <= 1:
            raise ValueError(f"held_out_share must lie in [0, 1], got {held_out_share}")
        super().__init__(f"{name}, shuffled captions" if shuffled_captions else name, image_size)
        self.validation: SplitSource | None = None  #: gives the tests in place of the records kept
        self.skipped_files.update({_printable(where): reason for where, reason in skipped.items()})
        self.skipped.update(Counter(skipped.values()))
        self._lock = threading.Lock()  # fetch may run in several threads
        self._count = count
        kept = count if held_out_share == 1 else min(MAX_HELD_OUT, round(held_out_share * count))
        self._kept = np.sort(first_of(count, kept, seed, -1))
        # Training pair i is record i plus the records kept before it: no list as long as the data is needed.
        self._kept_before = self._kept - np.arange(kept)
        self._captioned_by = permutation(count - kept, seed, -2).numpy() if shuffled_captions else None

    def __len__(self) -> int:
        return self._count - len(self._kept)

    def held_out(self) -> list[HeldOut]:
        """Return the test over the records kept, or none if there are none."""
        return self._test() if self.validation is None else self.validation.held_out()

    @abstractmethod
    def _test(self) -> list[HeldOut]:
        """Return the test over the records kept for validation."""

    def _records(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the records of training pairs, and the records that caption them."""
        records = index + np.searchsorted(self._kept_before, index, side="right")
        if self._captioned_by is None:
            return records, records
        other = self._captioned_by[index]
        return records, other + np.searchsorted(self._kept_before, other, side="right")

    def _skip(self, where: str, reason: Exception) -> None:
        """Count and list what cannot be used, once."""
        where = _printable(where)
        with self._lock:
            if where not in self.skipped_files:
                self.skipped_files[where] = str(reason)
                self.skipped[str(reason)] += 1


def _printable(where: str) -> str:
    """Return a file's name on one line, with escapes for what no text file can hold."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in where)
