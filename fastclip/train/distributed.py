"""Run on several ranks: start the process group, agree on flags, share what rank 0 decides, average gradients.

    torchrun --nproc-per-node 8 -m fastclip.train …

Every rank takes its part of each global batch, the loss is one over all ranks (`group=`), and gradients are averaged
after the backward pass, in the convention of fastclip/distributed. They travel in flat pieces whose layout follows
from the model alone, never from the order in which gradients came to be, so a resumed run adds the same numbers in the
same order as one that was not disturbed. Under `--fsdp` FSDP2 shards weights, gradients and Adam's state instead.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastclip.train.optim import AveragedWeights

_PIECE = 64 << 20  # bytes of gradients that travel together
_PIECES_UNDER_WAY = 3

T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank of the run cannot go on; the message says which, and why."""


@dataclass(frozen=True)
class World:
    """The ranks of a run, seen from one of them; one process alone is rank 0 of 1.

    Attributes:
        rank, size: this process's place, and the number of places.
        local_rank: its place on this machine: the number of its GPU.
        attempt: how often torchrun has restarted the run.
        store: what the ranks share, which outlives restarts; None in one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    attempt: int = 0
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and saves."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group that shares a batch, as the losses take it."""
        return dist.group.WORLD if self.size > 1 else None

    def any(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set on some rank. Every rank must call this with as many."""
        if self.size == 1:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.int32)
        with self._named("exchange of flags"):
            dist.all_reduce(seen, dist.ReduceOp.MAX)
        return [bool(flag) for flag in seen.tolist()]

    def from_main(self, decide: Callable[[], T]) -> T:
        """Return what `decide` returns on rank 0, on every rank; an exception there is raised everywhere."""
        if self.size == 1:
            return decide()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = decide()
            except Exception as error:
                outcome[1] = error
        with self._named("broadcast of rank 0's decision"):
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, of one shape, by rank."""
        if self.size == 1:
            return [rows]
        everyones = [torch.empty_like(rows) for _ in range(self.size)]
        with self._named("all-gather of features"):
            dist.all_gather(everyones, rows.contiguous())
        return everyones

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of all parameters that are trained by their means over the ranks.

        A parameter without a gradient gets one of zeros: who has one may differ between ranks.
        """
        if self.size == 1:
            return
        grads = []
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
        self._average(grads)

    def average_statistics(self, model: nn.Module, averaged: AveragedWeights | None = None) -> None:
        """Replace what batch norms have seen on each rank by its mean over the ranks; in the moving average too."""
        if self.size == 1:
            return
        names = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
        buffers = [model.get_buffer(name) for name in names]
        if averaged is not None:
            buffers += [averaged.weights[name] for name in names if name in averaged.weights]
        self._average(buffers)

    def _average(self, tensors: Iterable[Tensor]) -> None:
        under_way: deque[tuple[Any, Tensor, list[Tensor]]] = deque()
        for piece in _pieces(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in piece])
            under_way.append((dist.all_reduce(flat, async_op=True), flat, piece))
            if len(under_way) == _PIECES_UNDER_WAY:
                self._put_back(*under_way.popleft())
        while under_way:
            self._put_back(*under_way.popleft())

    def _put_back(self, work: Any, flat: Tensor, piece: list[Tensor]) -> None:
        with self._named("average of gradients"):
            work.wait()
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in piece])
        torch._foreach_copy_(piece, [part.view_as(own) for part, own in zip(parts, piece, strict=True)])

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RankError(
                f"the {what} failed on rank {self.rank} of {self.size}: a rank has died, or did not get there within "
                f"--dist-timeout; look for the first error among the ranks ({reason})"
            ) from error


def start(device: str, minutes: float) -> World:
    """Join the process group that torchrun describes in the environment; without it, be the only rank.

    Args:
        device: `--device`, which decides between gloo and NCCL.
        minutes: how long a collective waits for a rank that does not come.
    """
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    rank, size, local_rank, attempt = (
        int(os.environ.get(name, "0"))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    )
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(local_rank)
    timeout = timedelta(minutes=minutes)
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0 and not by_agent,
        timeout=timeout,
        multi_tenant=True,
    )
    # torchrun's store outlives a restart, and with it the addresses of processes that are gone.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",  # flags are exchanged without waiting for the GPU
        store=dist.PrefixStore(f"attempt{attempt}", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    return World(rank, size, local_rank, attempt, store)


def finish() -> None:
    """Leave the process group, after the last collective of a run that went well."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def shard(module: nn.Module, world: World, device_type: str, whole: Iterable[nn.Parameter]) -> None:
    """Shard a module's weights over the ranks with FSDP2, in place, each block of a transformer by itself.

    Args:
        whole: parameters that every rank keeps: those without dimensions, which cannot be cut.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device_type, (world.size,))
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=set(whole))


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Cut tensors, in order, into lists of one dtype and device that are at most _PIECE large, or one long."""
    piece: list[Tensor] = []
    size = 0
    for tensor in tensors:
        alike = not piece or (tensor.dtype, tensor.device) == (piece[0].dtype, piece[0].device)
        if piece and (not alike or size + tensor.nbytes > _PIECE):
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.nbytes
    if piece:
        yield piece
