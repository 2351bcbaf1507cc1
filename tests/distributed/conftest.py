"""One pool of ranks for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """Four processes that play the ranks of one job after the other."""
    pool = Pool(4)
    yield pool
    pool.close()
