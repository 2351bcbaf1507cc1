"""Draw the emoji once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastclip.data.emoji import EmojiSource

SIZE = 32


@pytest.fixture(scope="session")
def emoji_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that holds the drawn emoji; pytest-xdist's workers share it."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if folder.name.startswith("popen-") else folder) / "fastclip-emoji"


@pytest.fixture(scope="session")
def emoji_source(emoji_cache: Path) -> EmojiSource:
    return EmojiSource(SIZE, cache_dir=emoji_cache)
