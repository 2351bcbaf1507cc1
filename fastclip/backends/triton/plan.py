"""Which tiles, how many programs, which path: everything a launch decides from shapes and the GPU.

Tiles of the main kernels come from tiles.json, which says how they were found. Where the table lacks a GPU, a dtype or
a width, the nearest entry stands in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from fastclip.backends.base import Problem
from fastclip.objectives import Objective

TABLE = Path(__file__).with_name("tiles.json")

#: Whether Triton interprets kernels on the CPU: fixed when it was imported.
INTERPRETED: bool = triton.knobs.runtime.interpret

#: Up to so many entries the whole matrix of coefficients is kept in fp32: next to the launches it costs nothing.
#: fp16 loses digits of coefficients 2^-29 of the largest, and where all features share most of their direction, so
#: that a row's coefficients nearly cancel, its rounding shows; in a large batch both average out.
EXACT_ENTRIES = 2**20

#: From so many entries on the main kernels pay for their more launches.
STRIP_ENTRIES = 2**22


class Tile(NamedTuple):
    """BLOCK_M, BLOCK_N and BLOCK_D of a tile, and how a kernel walks it.

    ``group``: rows of tiles (coefficients) or strips (statistics) done side by side. ``resident``: programs an SM.
    """

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int
    group: int
    resident: int


#: Of the kernels for every case: no spills with all options on, on every architecture.
GENERAL = Tile(128, 64, 64, 8, 3, 8, 2)


@dataclass(frozen=True)
class Plan:
    """How to run one problem on one device."""

    statistics: Tile
    coefficients: Tile
    general: Tile
    exact: bool
    strips: bool
    tma: bool
    fragments: bool
    processors: int
    halves: int

    def splits(self, tiles: int, strips: int) -> int:
        """Return into how many programs to split a strip of so many tiles, so that all SMs finish together."""
        slots = self.processors * self.statistics.resident

        def rounds(splits: int) -> tuple[int, int]:
            return triton.cdiv(strips * splits, slots) * triton.cdiv(tiles, splits), splits

        return min(range(1, max(1, min(tiles, 2 * slots)) + 1), key=rounds)

    def programs(self, tiles: int, tile: Tile) -> int:
        """Return how many programs share so many tiles."""
        return max(1, min(tiles, self.processors * tile.resident))

    @property
    def statistics_block(self) -> tuple[int, int]:
        """Return the (rows, columns) of a forward block: its partial sums take some 200 MiB."""
        return 32768, 32768

    @property
    def coefficients_block(self) -> tuple[int, int]:
        """Return the (rows, columns) of a backward block: 528 MiB of fp16 on 132 SMs, in one half or two.

        At D = 512 the product with y then makes one 128 x 256 tile for every SM.
        """
        # Whole tiles of the general kernel too, which reads its operands unmasked.
        rows = max(1, self.coefficients.block_m * (self.processors // 2) // 128) * 128
        return rows, 32768 // self.halves


def plan_for(problem: Problem) -> Plan:
    """Decide how to run a problem."""
    x, entries = problem.x, len(problem.x) * len(problem.y)
    exact = entries <= EXACT_ENTRIES
    if INTERPRETED:
        return Plan(GENERAL, GENERAL, GENERAL._replace(block_n=128), exact, False, False, True, 2, x.halves)
    variant = "float32" if x.halves == 2 else "half" if x.factor is None else "factors"  # type: ignore[attr-defined]
    capability, processors = _device(x.data.device.index)
    statistics = tile_for(capability, "statistics", variant, x.width)
    coefficients = tile_for(capability, "coefficients", variant, x.width)
    strips = (
        problem.objective is not Objective.MULTI_SIGMOID
        and entries >= STRIP_ENTRIES
        and len(x) >= 2 * statistics.block_m
        and len(problem.y) >= 2 * statistics.block_n
    )
    fragments = capability[0] != 10  # there products leave the tensor cores through a memory of their own
    return Plan(
        *(statistics, coefficients, GENERAL, exact, strips),
        *(capability >= (9, 0), fragments, processors, x.halves),
    )


@lru_cache
def tile_for(capability: tuple[int, int], kernel: str, variant: str, width: int) -> Tile:
    """Return the table's tile for a GPU, or its nearest.

    Args:
        capability: the GPU's compute capability.
        kernel: "statistics" or "coefficients".
        variant: "half"; "factors" (16-bit rows normalised here) or "float32" (hi | lo), by default as "half".
        width: D.
    """
    entries = [entry for entry in _table() if entry["kernel"] == kernel]
    if capability[0] >= 12 and not any(entry["capability"].startswith("12.") for entry in entries):
        capability = (8, 6)  # no more shared memory than that

    def distance(entry: dict[str, Any]) -> tuple[Any, ...]:
        major, minor = map(int, entry["capability"].split("."))
        newer = (major, minor) > capability
        behind = (capability[0] - major, capability[1] - minor)
        return (
            newer,
            behind,
            entry["variant"] != variant,
            entry["variant"] != "half",
            abs(entry["width"] - width),
        )

    return Tile(*min(entries, key=distance)["tile"])


@lru_cache
def _table() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text())["tiles"]


@lru_cache
def _device(index: int) -> tuple[tuple[int, int], int]:
    """Return (compute capability, SMs)."""
    properties = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.multi_processor_count
