"""The collectives of torch.distributed that a loss needs: with a name, over shards of any size, and counted.

A collective whose partner has died, or never comes, raises `CollectiveError` with the collective's name once the
group's timeout is over (`init_process_group(timeout=...)`), or at once where the connection broke.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fastclip.distributed.ranks import Ranks

# torch 2.13 gave them new names; a torch built without torch.distributed has neither.
_all_gather_single: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_reduce_scatter_single: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out of a function, as `torch.compiler.disable` does, whose import takes a second."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*arguments, **options)
        return function(*arguments, **options)

    return call


class CollectiveError(RuntimeError):
    """A collective that did not come about, because a rank died or stayed away."""


class Transfer:
    """A collective under way: `wait` returns its result, once the present stream may use it."""

    def __init__(
        self, ranks: Ranks, what: str, start: Callable[[], list[Any]], finish: Callable[[], Any]
    ) -> None:
        self._ranks, self._what, self._finish = ranks, what, finish
        with _named(ranks, what):
            self._works = start()

    def wait(self) -> Any:
        """Wait for the transfer.

        Raises:
            CollectiveError: it failed.
        """
        with _named(self._ranks, self._what):
            for work in self._works:
                work.wait()
        return self._finish()


def all_gather(ranks: Ranks, tensor: Tensor, what: str) -> Tensor:
    """Return the tensors of all ranks, of one shape (n, …), behind each other (size · n, …)."""
    _count(what, (ranks.size - 1) * tensor.nbytes)
    gathered = tensor.new_empty(ranks.size * len(tensor), *tensor.shape[1:])
    with _named(ranks, what):
        _all_gather_single(gathered, tensor.contiguous(), group=ranks.group)
    return gathered


def start_all_gather_rows(ranks: Ranks, tensor: Tensor, what: str) -> Transfer:
    """Start gathering what each rank has per column, (its columns, …); the result is a list, by rank."""
    longest = max(ranks.cols)
    padded = _padded(tensor, longest)
    gathered = tensor.new_empty(ranks.size * longest, *tensor.shape[1:])
    _count(what, (ranks.size - 1) * padded.nbytes)

    def start() -> list[Any]:
        return [_all_gather_single(gathered, padded, group=ranks.group, async_op=True)]

    def finish() -> list[Tensor]:
        return [part[:n] for part, n in zip(gathered.split(longest), ranks.cols, strict=True)]

    return Transfer(ranks, what, start, finish)


def all_gather_columns(ranks: Ranks, vector: Tensor, what: str) -> Tensor:
    """Return the vectors of all ranks, one number per column, as one over all columns (N,)."""
    return torch.cat(start_all_gather_rows(ranks, vector, what).wait())


def reduce_scatter(ranks: Ranks, tensor: Tensor, what: str) -> Tensor:
    """Return the sum over ranks of what they have for this one, (n, …); `tensor` (size, n, …) is for each of them."""
    _count(what, (ranks.size - 1) * tensor.nbytes // ranks.size)
    with _named(ranks, what):
        if dist.get_backend(ranks.group) == "gloo":
            # gloo's reduce-scatter is an all-reduce: twice the bytes.
            received = torch.empty_like(tensor)
            dist.all_to_all_single(received, tensor, group=ranks.group)
            return received.sum(dim=0)
        total = torch.empty_like(tensor[0])
        _reduce_scatter_single(total, tensor, group=ranks.group)
    return total


def all_reduce_(ranks: Ranks, tensor: Tensor, what: str, *, largest: bool = False) -> Tensor:
    """Replace a tensor by its sum over ranks, or by its largest, in place; return it."""
    _count(what, 2 * (ranks.size - 1) * tensor.nbytes // ranks.size)
    with _named(ranks, what):
        dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=ranks.group)
    return tensor


def start_shift(ranks: Ranks, outgoing: Tensor, rows: int, what: str, tag: int) -> Transfer:
    """Start handing a tensor to the next rank of the ring, and taking one of `rows` rows from the one before.

    Neither may be changed until the transfer is waited for; the result is the tensor taken.

    Args:
        tag: keeps transfers apart that are under way at the same time.
    """
    outgoing = outgoing.contiguous()
    incoming = outgoing.new_empty(rows, *outgoing.shape[1:])
    _count(what, outgoing.nbytes)

    def start() -> list[Any]:
        ends = (
            (dist.isend, outgoing, (ranks.rank + 1) % ranks.size),
            (dist.irecv, incoming, (ranks.rank - 1) % ranks.size),
        )
        # Both ends know the sizes: nothing is sent where nothing is awaited.
        operations = [
            dist.P2POp(operation, tensor, group=ranks.group, group_peer=peer, tag=tag)
            for operation, tensor, peer in ends
            if tensor.numel()
        ]
        return dist.batch_isend_irecv(operations) if operations else []

    return Transfer(ranks, what, start, lambda: incoming)


@contextmanager
def traffic() -> Iterator[Counter[str]]:
    """Count the bytes this rank must send at least, by collective, while the context lasts.

    An all-gather or reduce-scatter of n bytes in all costs a rank ``n (R - 1) / R``, an all-reduce twice that.
    """
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


_counters: list[Counter[str]] = []


def _count(what: str, sent: int) -> None:
    for counter in _counters:
        counter[what] += sent


@contextmanager
def _named(ranks: Ranks, what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise CollectiveError(
            f"the {what} failed on rank {ranks.rank} of {ranks.size}: a rank has died, raised an error of its own, or "
            f"did not get there within the group's timeout; look for the first error among the ranks ({reason})"
        ) from error


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """Return a tensor with zero rows added, contiguous."""
    missing = rows - len(tensor)
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, missing)) if missing else tensor.contiguous()
