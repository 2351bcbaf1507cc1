"""Ranks that do not mean the same loss: one clear error, the same on every rank, and no deadlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import fastclip
from fastclip.distributed import world
from tests.distributed.oracle import D
from tests.distributed.pool import Pool


def call(
    rows: int = 4, width: int = D, dtype: str = "float32", function: str = "clip_loss", **options: Any
) -> str:
    """Run a loss on this rank; return its error."""
    features = torch.ones(
        rows, width, dtype=getattr(torch, dtype), requires_grad=options.pop("requires_grad", True)
    )
    if options.get("labels") is True:
        options["labels"] = torch.arange(rows)
    other = torch.ones(options.pop("texts", rows), width, dtype=features.dtype)
    try:
        getattr(fastclip.functional, function)(features, other, 1.7, group=dist.group.WORLD, **options)
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def differing(cases: list[dict[str, Any]]) -> list[str]:
    """Call losses in turn, where rank 1 differs from the others."""
    said = [call(**(case if dist.get_rank() == 1 else {})) for case in cases]
    return [*said, call()]


#: What rank 1 does differently, and words of the error on every rank.
DIFFERENCES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"width": 7}, ("width D", "6 on ranks 0, 2", "7 on rank 1")),
    (
        {"dtype": "bfloat16"},
        ("dtype of the features", "torch.float32 on ranks 0, 2", "torch.bfloat16 on rank 1"),
    ),
    ({"function": "siglip_loss"}, ("objective", "softmax on ranks 0, 2", "sigmoid on rank 1")),
    ({"labels": True}, ("labels given", "False on ranks 0, 2", "True on rank 1")),
    ({"mode": "ring"}, ("mode", "gather", "ring")),
    ({"reduction": "sum"}, ("reduction", "mean", "sum")),
    ({"normalize": True}, ("normalize",)),
    ({"label_smoothing": 0.1}, ("label_smoothing", "0.0", "0.1")),
    ({"logit_bias": 1.0}, ("logit_bias given",)),
    ({"function": "info_nce_loss"}, ("weights", "[0.5, 0.5]", "[1.0, 0.0]")),
    ({"labels": True, "multi_positive": True}, ("multi_positive", "label_smoothing")),
    ({"requires_grad": False}, ("gradient needed",)),
]


def test_differences_are_errors_on_every_rank(ranks: Pool) -> None:
    by_rank = ranks.run(differing, 3, [case for case, _ in DIFFERENCES])
    for (case, words), *said in zip(DIFFERENCES, *(each[:-1] for each in by_rank), strict=True):
        assert len(set(said)) == 1, (case, said)  # the same everywhere
        assert said[0].startswith("ValueError: the ranks disagree"), (case, said)
        assert all(word in said[0] for word in words), (case, said)
    assert [each[-1] for each in by_rank] == ["no error"] * 3  # and the group is as good as new


#: What rank 1 refuses by itself, its error, and words of the others'.
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "int64", "requires_grad": False}, "floating point"),
    ({"texts": 2}, "diagonal=0 puts the positives"),
    ({"reduction": "median"}, "reduction must be one of"),
    ({"labels": torch.arange(3)}, "row labels must have shape (4,)"),
    ({"backend": "abacus"}, "backend must be"),
    ({"label_smoothing": 2.0}, "label_smoothing must be a number in"),
    ({"function": "info_nce_loss", "temperature": 0.1}, "exactly one of logit_scale and temperature"),
    ({"width": 0}, "is empty"),
    ({"mode": "star"}, "mode must be one of 'gather', 'ring', got 'star'"),
    ({"reduction": "ü" * 3000}, "reduction must be one of"),  # longer than the message
]


def test_a_refusal_reaches_all_ranks(ranks: Pool) -> None:
    by_rank = ranks.run(differing, 3, [case for case, _ in REFUSALS])
    for (case, words), *said in zip(REFUSALS, *(each[:-1] for each in by_rank), strict=True):
        assert words in said[1] and "refused" not in said[1], (case, said)
        assert said[0] == said[2] and said[0].startswith("ValueError: no rank computes this loss"), (
            case,
            said,
        )
        assert "rank 1" in said[0] and words in said[0], (case, said)
    assert [each[-1] for each in by_rank] == ["no error"] * 3


def test_nothing_to_compare(ranks: Pool) -> None:
    said = ranks.run(call, 2, 0)
    assert len(set(said)) == 1 and "shards of all 2 ranks are empty" in said[0]


def misuse() -> list[str]:
    from torch.distributed.device_mesh import init_device_mesh

    x = torch.ones(3, D)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    other = dist.new_group([1 - dist.get_rank()], use_local_synchronization=False)
    said = []
    for group, mode in ((mesh, "gather"), ("world", "gather"), (None, "star")):
        try:
            fastclip.clip_loss(x, x, 1.0, group=group, mode=mode)
        except (ValueError, TypeError) as error:
            said.append(str(error))
    del other
    for rank, size in ((1 - dist.get_rank(), 2), (dist.get_rank(), 3)):
        try:
            world(rank, size)
        except ValueError as error:
            said.append(str(error))
    assert world(dist.get_rank(), 2) is dist.group.WORLD
    return said


def test_what_is_no_group(ranks: Pool) -> None:
    for mesh, name, mode, rank, size in ranks.run(misuse, 2):
        assert "mesh of 2 dimensions" in mesh and "group=mesh['a']" in mesh
        assert "ProcessGroup or a one-dimensional DeviceMesh, got str" in name
        assert "'gather', 'ring'" in mode and "'star'" in mode
        assert "do not fit the default process group" in rank and "do not fit" in size


def test_a_process_outside_the_group_and_no_group_at_all() -> None:
    x = torch.ones(3, D)
    with pytest.raises(ValueError, match="does not contain this process"):
        fastclip.clip_loss(x, x, 1.0, group=dist.GroupMember.NON_GROUP_MEMBER)
    with pytest.raises(ValueError, match="torchrun"):
        world(0, 2)
