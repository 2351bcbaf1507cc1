"""Ways of sending small problems down the paths that the Triton backend keeps for large ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from fastclip.backends.base import Problem
from fastclip.backends.triton import plan as planning
from fastclip.backends.triton.plan import Plan, Tile
from fastclip.objectives import Objective


@dataclass(frozen=True)
class SmallPlan(Plan):
    """A plan whose blocks are of any size, to cut small problems into several."""

    blocks: tuple[int, int] = (10**6, 10**6)

    @property
    def statistics_block(self) -> tuple[int, int]:
        return self.blocks

    @property
    def coefficients_block(self) -> tuple[int, int]:
        return self.blocks


@contextmanager
def plans(
    block: tuple[int, int] = (16, 32),
    *,
    strips: bool = True,
    tma: bool = False,
    fragments: bool = True,
    exact: bool = False,
    blocks: tuple[int, int] = (10**6, 10**6),
) -> Iterator[None]:
    """Run everything in tiles of `block`.

    Args:
        strips: through the main kernels, where labels allow; through the general ones otherwise.
        tma: with tensor descriptors.
        fragments: as on GPUs whose threads hold products as fragments.
        exact: with float32 coefficients.
        blocks: (rows, columns) of the driver's blocks, multiples of `block`.
    """
    # One shape for all: on a GPU a product's bits do not depend on its tile, in the interpreter (BLAS) they do.
    tile = Tile(*block, block_d=64, warps=4, stages=2, group=2, resident=1)

    def plan_for(problem: Problem) -> SmallPlan:
        plain = problem.objective is not Objective.MULTI_SIGMOID
        return SmallPlan(
            tile, tile, tile, exact, strips and plain, tma, fragments, 3, problem.x.halves, blocks
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "plan_for", plan_for)
        yield
