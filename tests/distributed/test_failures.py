"""A rank that dies or stays away ends the others with an error that names the collective, inside the time limit."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

import fastclip
from fastclip.distributed import CollectiveError
from tests.distributed.oracle import D
from tests.distributed.pool import Pool

LIMIT = 2


def step(mode: str, moment: str, way: str) -> tuple[str, float]:
    """Take a step in which rank 2 dies or sleeps at some moment; return the error and the seconds it took."""
    last = dist.get_rank() == 2

    def fail(now: str) -> None:
        if last and now == moment:
            if way == "dies":
                os._exit(1)
            time.sleep(3 * LIMIT)

    x, y = torch.randn(3, D, requires_grad=True), torch.randn(3, D, requires_grad=True)
    fastclip.clip_loss(x, y, 1.7, group=dist.group.WORLD, mode=mode).backward()  # all is well at first
    start = time.monotonic()
    try:
        fail("before forward")
        loss = fastclip.clip_loss(x, y, 1.7, group=dist.group.WORLD, mode=mode)
        fail("before backward")
        loss.backward()
    except CollectiveError as error:
        return str(error), time.monotonic() - start
    return "no error", 0.0


@pytest.mark.parametrize(
    ("mode", "moment", "way"),
    [
        ("gather", "before forward", "dies"),
        ("ring", "before backward", "dies"),
        ("gather", "before backward", "stays away"),
        pytest.param("ring", "before forward", "dies", marks=pytest.mark.slow),
        pytest.param("gather", "before backward", "dies", marks=pytest.mark.slow),
        pytest.param("ring", "before backward", "stays away", marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_ends_the_others(ranks: Pool, mode: str, moment: str, way: str) -> None:
    outcomes = ranks.outcomes(step, 3, mode, moment, way, collective_limit=LIMIT, limit=30 * LIMIT)
    ranks.close()  # a group that lost a rank serves nobody else
    if way == "dies":
        assert outcomes[2] == (False, "the process ended")
    for ok, said in outcomes[:2]:
        assert ok, said
        message, seconds = said
        assert (
            "all-gather of the terms" in message
            if moment == "before forward"
            else "failed on rank" in message
        )
        assert "a rank has died" in message
        assert seconds < 5 * LIMIT
