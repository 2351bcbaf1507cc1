"""The formulas of benchmarks/costs.py against counters: FLOPs, bytes on the wire, live memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

import fastclip
from benchmarks import scaling, wire
from benchmarks.costs import MESSAGE, Setup
from benchmarks.scaling import H100, Network, simulate
from fastclip.backends.cpu import CpuBackend
from fastclip.distributed import traffic
from tests.distributed.pool import Pool

MODES = ("gather", "ring")
SIDE = 64  # of the blocks in the memory test

needs_cpu_backend = pytest.mark.skipif(
    CpuBackend().unavailable_reason() is not None, reason="needs the C++ extension"
)


def step(setup: Setup, mode: str, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Take a step on this rank's shard; yield before it, between the passes, and after it."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    x, y = (
        torch.randn(setup.shard, setup.width, generator=generator).to(dtype).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(2.0, requires_grad=True)
    function = fastclip.clip_loss if setup.columns else fastclip.siglip_loss
    yield
    loss = function(x, y, scale, normalize=setup.normalize, group=dist.group.WORLD, mode=mode, workspace=0)
    yield
    loss.backward()
    yield


def counted_bytes(setup: Setup, mode: str) -> tuple[dict[str, int], int | None]:
    """Return what fastclip counted in a step, and what the kernel did."""
    for _ in step(setup, mode):  # connects
        continue
    dist.barrier()
    steps = step(setup, mode)
    next(steps)
    before = wire.received()
    with traffic() as counter:
        list(steps)
    after = wire.received()
    dist.barrier()
    return dict(counter), None if before is None or after is None else after - before


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 4])
def test_bytes(ranks: Pool, world: int, mode: str, columns: bool) -> None:
    setup = Setup(64 * world, world, 256, itemsize=4, columns=columns)
    for counter, on_the_wire in ranks.run(counted_bytes, world, setup, mode):
        assert sum(n for name, n in counter.items() if "text features" in name) == setup.text_bytes(mode)
        assert sum(n for name, n in counter.items() if "text gradients" in name) == setup.gradient_bytes()
        assert sum(n for name, n in counter.items() if "column" in name) == setup.column_bytes()
        small = counter["all-gather of the terms of the loss"]
        assert small == (world - 1) * MESSAGE
        total = setup.bytes(mode)
        assert 0 <= sum(counter.values()) - total - small < 100  # the scalars
        if on_the_wire is not None:  # with headers of messages
            assert total + small <= on_the_wire < 1.02 * (total + small) + 4000


def counted_flops(setup: Setup, mode: str) -> tuple[int, int]:
    """Return the FLOPs of this rank's matrix products in either pass."""
    steps = step(setup, mode)
    next(steps)
    found = []
    for _ in range(2):
        # In-place products into what is there already: two operands more in front.
        custom = {torch.ops.aten.addmm_: addmm_flop}
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            next(steps)
        found.append(counter.get_total_flops())
    return found[0], found[1]


@needs_cpu_backend
@pytest.mark.parametrize("mode", MODES)
def test_every_logit_is_computed_once_per_pass(ranks: Pool, mode: str) -> None:
    setup = Setup(36, 3, 16)
    for forward, backward in ranks.run(counted_flops, 3, setup, mode):
        assert (forward, backward) == (setup.forward_flops, setup.backward_flops)


class LiveMemory(TorchDispatchMode):
    """Count the bytes of tensors that are made while the mode is on and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._notice(tensor.untyped_storage(), inputs)
        return result

    def _notice(self, storage: Any, inputs: set[int]) -> None:
        if storage._cdata in inputs or storage in self.seen:
            return
        self.seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


def counted_memory(setup: Setup, mode: str, dtype: torch.dtype) -> int:
    """Return the peak of live bytes in a step whose blocks are small."""
    steps = step(setup, mode, dtype)
    next(steps)
    with (
        mock.patch.object(CpuBackend, "block_shape", lambda self, m, n: (SIDE, SIDE)),
        LiveMemory() as memory,
    ):
        next(steps)
        next(steps)
    return memory.peak


@needs_cpu_backend
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shard", "width"), [(64, 2048), (256, 8)]
)  # features outweigh vectors, and the reverse
def test_memory(ranks: Pool, shard: int, width: int, dtype: torch.dtype, mode: str) -> None:
    setup = Setup(4 * shard, 4, width, dtype.itemsize, packed=4)
    formula = setup.memory(mode)
    for peak in ranks.run(counted_memory, 4, setup, mode, dtype):
        assert 0.85 * formula < peak - SIDE * SIDE * 4 < 1.05 * formula


# The simulation


def test_without_a_network_a_step_is_its_products() -> None:
    free = Network(inside=1e30, across=1e30, hop_inside=0, hop_across=0)
    device = scaling.replace(H100, overhead=0.0)
    for mode in MODES:
        step = simulate(Setup(2**18, 64, 512), mode, device, free)
        assert (
            step.seconds
            == pytest.approx(step.products)
            == pytest.approx(8 * 2**36 * 512 / 64 / device.forward_rate)
        )


def test_a_slow_network_is_all_there_is() -> None:
    slow = Network(inside=1e6, across=1e6, hop_inside=0, hop_across=0)
    setup = Setup(2**12, 8, 512, columns=False)
    gather, ring = (simulate(setup, mode, H100, slow) for mode in MODES)
    assert gather.seconds == pytest.approx(setup.bytes("gather") / 1e6, rel=0.02)
    # A ring's last gradients travel when all texts have.
    assert ring.seconds == pytest.approx(setup.bytes("ring") / 1e6, rel=0.2)


def test_a_ring_hides_its_transfers_from_some_shard_on() -> None:
    network, device = Network(hop_inside=0, hop_across=0), scaling.replace(H100, overhead=0.0)
    ranks = 64
    shard = scaling.hiding_shard(Setup(ranks, ranks, 512), device, network)
    lost = []
    for n in (shard // 4, shard, 4 * shard):
        step = simulate(Setup(n * ranks, ranks, 512), "ring", device, network)
        lost.append(step.seconds / step.products - 1)
    assert lost[0] > 1 > 0.1 > lost[1] > lost[2]


def test_the_document_has_the_table_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main([]) == 0
    table = capsys.readouterr().out.partition("\n\n")[2].partition("\n\n")[0]
    document = (scaling.Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    assert table in document, "run: python -m benchmarks scaling --write docs/scaling.md"
