"""Say where things that are made once are kept."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def default_cache_dir() -> Path:
    """Return ``$FASTCLIP_CACHE``, else ``fastclip`` in the user's cache directory."""
    if chosen := os.environ.get("FASTCLIP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastclip"


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Give a path to write to, renamed to ``file`` at the end: another process sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        yield aside
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
