"""Compile the Triton backend's kernels for a GPU that is not there, and read what became of them.

    python -m tests.backends.offline --capability 9.0 --variants half --objectives softmax --width 512

The launchers themselves run, on small problems in CPU memory: what is compiled is what they would launch, down to the
alignment of every pointer. Only the launch is left out. Not for a process where Triton interprets, nor with a cache of
kernels compiled before (TRITON_CACHE_DIR).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastclip import blockwise, distillation
from fastclip.backends import get_backend
from fastclip.backends.triton import plan as planning
from fastclip.objectives import Objective

#: Streaming multiprocessors of the A100, RTX 3090, H100, B200 and RTX 5090.
PROCESSORS = {"8.0": 108, "8.6": 82, "9.0": 132, "10.0": 148, "12.0": 170}

#: What losses ask for: an objective, one with labels, or a student's softmax less a teacher's.
KINDS = (
    *(objective.value for objective in Objective),
    *("softmax, labels", "sigmoid, labels", "distillation"),
)

#: By variant: the features' dtype, and whether they are normalised by the kernels.
VARIANTS = {
    "half": (torch.float16, False),
    "factors": (torch.bfloat16, True),
    "float32": (torch.float32, False),
}


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code in numbers.

    ``spilled`` is the bytes of registers stored to memory and loaded again; ``wgmma``, ``tma_loads`` and ``tma_stores``
    count instructions; ``serialized``: the assembler could not keep wgmma asynchronous.
    """

    name: str
    guard: str
    variant: str
    objective: str
    registers: int
    spilled: int
    shared: int
    warps: int
    wgmma: int
    tma_loads: int
    tma_stores: int
    serialized: bool


class Driver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: str) -> None:
        major, minor = capability.split(".")
        self.target = GPUTarget("cuda", 10 * int(major) + int(minor), 32)

    def get_current_target(self) -> GPUTarget:
        """Return the GPU to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Return 0: there is one, in the mind."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return 0: nothing is launched."""
        return 0


#: A compiled kernel, its guard (tiles.Spec), and what the assembler said of it.
Found = tuple[Any, str, str]


@contextmanager
def compiling(capability: str, only: tuple[str, ...], small: bool, found: dict[str, Found]) -> Iterator[None]:
    """Compile instead of launching, and put into `found`; of all kernels, or only those of these names.

    Unless `small`, problems are planned as if they were large.
    """
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if only and self.__name__ not in only:
            return
        with redirect_stdout(io.StringIO()) as log:
            kernel = run(self, *args, grid=grid, warmup=True, **options)
        spec = dict(zip(self.arg_names, args, strict=False)).get("spec")
        found.setdefault(kernel.hash, (kernel, getattr(spec, "guard", ""), log.getvalue()))

    device = (tuple(int(part) for part in capability.split(".")), PROCESSORS[capability])
    triton.runtime.driver.set_active(Driver(capability))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(triton.knobs.nvidia, "dump_ptxas_log", True),
        mock.patch.object(planning, "_device", lambda index: device),
        mock.patch.object(planning, "STRIP_ENTRIES", planning.STRIP_ENTRIES if small else 0),
        mock.patch.object(planning, "EXACT_ENTRIES", planning.EXACT_ENTRIES if small else 0),
    ):
        yield


def step(objective: str, variant: str, width: int, small: bool) -> None:
    """Run a loss's forward and backward pass through the launchers, on a few tiles; `small` ones have labels."""
    backend = get_backend("triton")
    dtype, normalize = VARIANTS[variant]
    objective, *labelled = objective.split(", ")
    m, n, columns, many = 600, 1100, objective == "softmax", objective == "multi_sigmoid"
    x, y = (torch.zeros(rows, width, dtype=dtype) for rows in (m, n))
    if objective == "distillation":
        student, teacher = (
            blockwise.pose(backend, *pair, torch.tensor(10.0), None, None, Objective.SOFTMAX, normalize, None)
            for pair in ((x, y), (x.repeat(1, 2), y.repeat(1, 2)))
        )
        distillation.walk_twice(backend, student, teacher, dtype, need_grad=True)
        return
    bias = None if columns else torch.tensor(-10.0)
    labels = None
    if small or many or labelled:
        labels = torch.zeros(m, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    problem = blockwise.pose(
        *(backend, x, y, torch.tensor(10.0), bias, labels, Objective(objective), normalize),
        None if many else 5,
    )
    statistics = blockwise.statistics(backend, problem, dtype, columns=columns, keep=0)
    blockwise.values(problem, statistics, backend)
    upstream = torch.zeros(m), torch.zeros(n) if columns else None
    blockwise.gradients(backend, problem, statistics, *upstream, dtype, need_x=True, need_y=True)


def measure(
    capability: str,
    variants: Sequence[str],
    objectives: Sequence[str],
    width: int,
    only: tuple[str, ...] = (),
    small: bool = False,
) -> list[Compiled]:
    """Compile what losses launch; return every kernel once, under the first that launches it."""
    found: dict[str, Found] = {}
    kernels = []
    with compiling(capability, only, small, found):
        for variant, objective in product(variants, objectives):
            before = len(found)
            step(objective, variant, width, small)
            kernels += [_read(*kernel, variant, objective) for kernel in list(found.values())[before:]]
    return kernels


def _read(kernel: Any, guard: str, log: str, variant: str, objective: str) -> Compiled:
    name, ptx = kernel.metadata.name, kernel.asm["ptx"]
    registers, *spills = (
        re.search(pattern, log)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    )
    if registers is None or None in spills:
        raise RuntimeError(f"the assembler does not say what {name} uses, but: {log!r}")
    return Compiled(
        name,
        guard,
        variant,
        objective,
        registers=int(registers[1]),
        spilled=sum(int(found[1]) for found in spills if found),
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        wgmma=ptx.count("wgmma.mma_async"),
        tma_loads=len(re.findall(r"cp\.async\.bulk\.tensor\S*\.shared\S*\.global", ptx)),
        tma_stores=len(re.findall(r"cp\.async\.bulk\.tensor\S*\.global\.shared", ptx)),
        serialized="wgmma.mma_async instructions are serialized" in log,
    )


def main(arguments: list[str]) -> int:
    """Print what was compiled."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--capability", choices=PROCESSORS, default="9.0")
    add("--variants", choices=VARIANTS, nargs="+", default=tuple(VARIANTS))
    add("--objectives", choices=KINDS, nargs="+", default=("softmax", "sigmoid"))
    add("--width", type=int, default=512)
    add("--only", nargs="+", default=(), metavar="KERNEL")
    add("--small", action="store_true", help="what small problems with labels launch")
    add("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    only = tuple(options.only)
    kernels = measure(
        *(options.capability, options.variants, options.objectives, options.width), only, options.small
    )
    if options.json:
        print(json.dumps([asdict(kernel) for kernel in kernels]))
        return 0
    for kernel in kernels:
        fields = asdict(kernel).items()
        words = " ".join(value for _, value in fields if isinstance(value, str) and value)
        numbers = "  ".join(
            f"{field} {value}" for field, value in fields if not isinstance(value, str) and value
        )
        print(f"{words:<44}{numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
