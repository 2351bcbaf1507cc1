"""The Triton backend's kernels through Triton's compiler and NVIDIA's assembler, for GPUs that need not be there.

What is tested is what a GPU would run: that every kernel compiles with the arguments that its launcher gives it, and
that the main kernels keep their accumulators in registers, fit the shared memory, and use Hopper's instructions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

pytestmark = pytest.mark.skipif(
    not any(TOOLS.glob("ptxas*")), reason=f"this Triton brings no assembler: there is no ptxas in {TOOLS}"
)

#: Bytes of shared memory that a program may have.
SHARED_LIMIT = {"8.0": 163 * 1024, "8.6": 99 * 1024, "9.0": 227 * 1024, "10.0": 227 * 1024, "12.0": 99 * 1024}

#: Where large problems spend their time.
MAIN = ("strip_statistics", "sweep_coefficients")

#: Those that take every case.
GENERAL = ("tile_statistics", "tile_coefficients")

#: Over rows and columns.
VECTORS = (
    "pack_rows",
    "prepare",
    "check_sums",
    "merge",
    "positives",
    "values",
    "bound",
    "weigh",
    "total",
    "finish_rows",
)

#: Bytes: what a version of the compiler may leave of four registers, once a tile.
LITTLE = 32


def compiled(cache: Path, capability: str, *arguments: str) -> list[dict[str, Any]]:
    """Compile in a process of its own: here Triton interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.offline", "--json", "--capability", capability, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def flaws(kernels: list[dict[str, Any]], capability: str) -> list[str]:
    """Say what is wrong with kernels' machine code."""
    found = []
    for kernel in kernels:
        name = " ".join(
            filter(None, (kernel["name"], kernel["guard"], kernel["variant"], kernel["objective"]))
        )
        if kernel["shared"] > SHARED_LIMIT[capability]:
            found.append(f"{name}: {kernel['shared']} bytes of shared memory, of {SHARED_LIMIT[capability]}")
        if kernel["name"] in (*MAIN, *GENERAL) and kernel["spilled"] > LITTLE:
            found.append(f"{name}: spills {kernel['spilled']} bytes")
        if capability == "9.0" and kernel["name"] in (*MAIN, *GENERAL):
            if not kernel["wgmma"]:
                found.append(f"{name}: no wgmma")
            if kernel["serialized"]:
                found.append(f"{name}: wgmma is not asynchronous")
        if capability == "9.0" and kernel["name"] in MAIN:
            if not kernel["tma_loads"]:
                found.append(f"{name}: operands not loaded by TMA")
            if kernel["name"] == "sweep_coefficients" and not kernel["tma_stores"]:
                found.append(f"{name}: coefficients not stored by TMA")
    return found


def test_main_kernels_for_hopper(tmp_path: Path) -> None:
    kernels = compiled(
        tmp_path, "9.0", "--variants", "half", "--objectives", "softmax", "--only", *MAIN, "prepare"
    )
    assert {kernel["name"] for kernel in kernels} == {*MAIN, "prepare"}
    assert flaws(kernels, "9.0") == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["10.0", "12.0"])
def test_newer_gpus(tmp_path: Path, capability: str) -> None:
    kernels = compiled(
        tmp_path, capability, "--variants", "half", "--only", *MAIN, *GENERAL, "edge_statistics"
    )
    assert {*MAIN, *GENERAL, "edge_statistics"} == {kernel["name"] for kernel in kernels}
    assert flaws(kernels, capability) == []
    assert all(kernel["tma_loads"] for kernel in kernels if kernel["name"] in MAIN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "variants"),
    [(capability, ("half", "factors", "float32")) for capability in ("8.0", "9.0")],
)
def test_everything_compiles(tmp_path: Path, capability: str, variants: tuple[str, ...]) -> None:
    losses = ("softmax", "sigmoid", "softmax, labels", "sigmoid, labels", "distillation")
    kernels = compiled(tmp_path, capability, "--variants", *variants, "--objectives", *losses)
    for variant in variants:
        assert ("tile_coefficients", variant, "distillation") in {
            (kernel["name"], kernel["variant"], kernel["objective"]) for kernel in kernels
        }
    for objective, variant in product(losses[:4], variants):
        names = {k["name"] for k in kernels if (k["objective"], k["variant"]) == (objective, variant)}
        assert {*MAIN, "edge_statistics", "tile_coefficients"} <= names
    assert {*VECTORS, *GENERAL, "mark"} <= {kernel["name"] for kernel in kernels}
    assert flaws(kernels, capability) == []


@pytest.mark.slow
def test_what_small_problems_launch(tmp_path: Path) -> None:
    kernels = compiled(
        tmp_path,
        "9.0",
        "--small",
        "--variants",
        "factors",
        "float32",
        "--objectives",
        "softmax",
        "multi_sigmoid",
    )
    assert {*GENERAL, "weigh", "merge"} <= {k["name"] for k in kernels if k["objective"] == "multi_sigmoid"}
    assert not {*MAIN, "bound"} & {kernel["name"] for kernel in kernels}  # float32 coefficients need no bound
    assert flaws(kernels, "9.0") == []


def test_flaws_are_found() -> None:
    """The test itself can fail: each number that is wrong is named."""
    good = {
        "name": "sweep_coefficients",
        **{"guard": "", "variant": "half", "objective": "softmax", "registers": 240, "warps": 8},
        **{"spilled": 0, "shared": 200_000, "wgmma": 4, "tma_loads": 8, "tma_stores": 2, "serialized": False},
    }
    assert flaws([good], "9.0") == []
    bad = {"spilled": 364, "shared": 240_000, "wgmma": 0, "tma_loads": 0, "tma_stores": 0, "serialized": True}
    assert [len(flaws([good | {name: value}], "9.0")) for name, value in bad.items()] == [1] * len(bad)
    assert len(flaws([good], "8.0")) == 1  # more than an A100 has
