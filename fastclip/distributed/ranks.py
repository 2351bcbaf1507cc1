"""Who computes a loss together: the ranks of a process group, and the check that all of them mean the same loss.

A collective that ranks enter with different shapes or dtypes does not fail, it ends the process or fills memory with
nonsense. So before the first one every rank tells every other, in one message of fixed size, what it is about to
compute and how many rows it brings, or that it was called with arguments that cannot work. Every rank then has the
same table before it, and comes to the same verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastclip.distributed import collectives

#: How texts get around: see fastclip/distributed/exchange.py.
MODES = ("gather", "ring")

#: Bytes of the message with which ranks agree.
MESSAGE = 1024


class Ranks:
    """The ranks of a group, seen from one of them.

    Attributes:
        group: the process group.
        rank, size: this rank's place in the group (not in the world), and the number of places.
        mode: how the texts get around.
        rows, cols: how many images and texts each rank holds; empty until `agree`.
    """

    def __init__(self, group: dist.ProcessGroup, mode: str) -> None:
        self.group, self.mode = group, mode
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.rows: list[int] = []
        self.cols: list[int] = []

    @property
    def agreed(self) -> bool:
        """Say whether `agree` has been through."""
        return bool(self.rows)

    def agree(self, rows: int, cols: int, terms: dict[str, Any]) -> None:
        """Exchange the sizes of all shards, and check that all ranks compute the same loss.

        Args:
            rows, cols: this rank's images and texts; they may differ between ranks, and be 0.
            terms: what must not differ, by the name that the error calls it; values are whatever JSON can say.

        Raises:
            ValueError: the ranks disagree, one refused its arguments, or no rank has a row; the same on every rank.
            CollectiveError: a rank is not there.
        """
        table = self._exchange({"rows": rows, "cols": cols, "terms": terms})
        # The table is known to all: from here on no rank need tell the others that it gives up.
        self.rows = [said.get("rows", 0) for said in table]
        self.cols = [said.get("cols", 0) for said in table]
        refused = {rank: said["refused"] for rank, said in enumerate(table) if "refused" in said}
        if refused:
            reasons = "; ".join(f"rank {rank}: {reason}" for rank, reason in refused.items())
            raise ValueError(f"no rank computes this loss, because some refused their arguments: {reasons}")
        everyones = [said["terms"] for said in table]
        names = sorted({name for theirs in everyones for name in theirs})
        differing = [name for name in names if len({str(theirs.get(name)) for theirs in everyones}) > 1]
        if differing:
            raise ValueError(_disagreement(differing, everyones))
        if sum(self.rows) == 0:
            raise ValueError(f"the shards of all {self.size} ranks are empty; a loss needs at least one pair")

    def refuse(self, error: Exception) -> None:
        """Tell the other ranks, which are waiting in `agree`, that this one was called with arguments it refuses."""
        text = f"{type(error).__name__}: {error}"
        while len(_encoded({"refused": text})) > MESSAGE:
            text = text[: len(text) // 2] + " …"
        self._exchange({"refused": text})

    def _exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        said = bytearray(_encoded(message).ljust(MESSAGE))
        words = torch.frombuffer(said, dtype=torch.int64).to(_message_device(self.group))
        everyones = collectives.all_gather(self, words, "all-gather of the terms of the loss").cpu()
        return [json.loads(bytes(row.numpy().tobytes())) for row in everyones.view(self.size, -1)]

    def take(self, vector: Tensor, owners: tuple[int, ...]) -> Tensor:
        """Return the part of a vector over all columns (N,) that belongs to some ranks, in their order."""
        parts = vector.split(self.cols)
        return parts[owners[0]] if len(owners) == 1 else torch.cat([parts[owner] for owner in owners])


def together(group: Any, mode: str) -> AbstractContextManager[Ranks | None]:
    """Open a loss of several ranks; None where one process computes it alone.

    Within the context either the ranks `agree`, or an exception that keeps this one from it reaches the others too:
    they are told, and raise as well.

    Args:
        group: a ProcessGroup, a DeviceMesh of one dimension, or None.
        mode: one of `MODES`.

    Raises:
        ValueError: an unknown mode, a mesh of several dimensions, or a group without this process.
        TypeError: something else as group.
    """
    ranks = None if group is None else Ranks(_process_group(group), mode)
    if ranks is None or ranks.size == 1:
        _check_mode(mode)
        return nullcontext()
    return _or_refuse(ranks)


def world(rank: int, world_size: int) -> dist.ProcessGroup:
    """Return the default process group, for callers that describe it by rank and world size.

    Raises:
        ValueError: there is none, or it has another size or gives this process another rank.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"world_size={world_size} needs a process group, and there is none: start the program with torchrun and "
            "call torch.distributed.init_process_group() first"
        )
    actual = dist.get_rank(), dist.get_world_size()
    if actual != (rank, world_size):
        raise ValueError(
            f"rank={rank} and world_size={world_size} do not fit the default process group, in which this is rank "
            f"{actual[0]} of {actual[1]}; for a part of the ranks give group= instead"
        )
    return dist.group.WORLD  # type: ignore[return-value]


@contextmanager
def _or_refuse(ranks: Ranks) -> Iterator[Ranks]:
    try:
        _check_mode(ranks.mode)
        yield ranks
    except collectives.CollectiveError:
        raise
    except Exception as error:
        if not ranks.agreed:
            ranks.refuse(error)
        raise


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")


def _process_group(group: Any) -> dist.ProcessGroup:
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            names: tuple[Any, ...] = group.mesh_dim_names or tuple(range(group.ndim))
            raise ValueError(
                f"group is a mesh of {group.ndim} dimensions {names}; take the one that shares a batch, "
                f"as in group=mesh[{names[0]!r}]"
            )
        group = group.get_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group does not contain this process; only its members may call the loss")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a ProcessGroup or a one-dimensional DeviceMesh, got {type(group).__name__}"
        )
    return group


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode()


def _message_device(group: dist.ProcessGroup) -> torch.device:
    """Return where messages travel: through the host where the group can, so that no GPU has to be waited for."""
    if "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _disagreement(names: list[str], terms: list[dict[str, Any]]) -> str:
    lines = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for rank, theirs in enumerate(terms):
            by_value.setdefault(str(theirs.get(name)), []).append(str(rank))
        said = ", ".join(
            f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" for value, ranks in by_value.items()
        )
        lines.append(f"{name} is {said}")
    return f"the ranks disagree: {'; '.join(lines)}. All ranks of a group must call the same loss in the same way"
