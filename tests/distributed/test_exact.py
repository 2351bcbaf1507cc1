"""Values and every gradient over ranks equal the dense float64 truth: modes, layouts, objectives, worlds, subgroups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from fastclip.backends.cpu import CpuBackend
from tests.distributed.oracle import LAYOUTS, LOSSES, Answer, Batch, Layout, Loss, differentiate, truth
from tests.distributed.pool import Pool

MODES = ("gather", "ring")


def close(ours: Tensor | None, exact: Tensor | None, rtol: float = 1e-11) -> bool:
    """Compare to a fraction of the largest entry."""
    if ours is None or exact is None:
        return ours is exact
    if ours.shape != exact.shape:
        return False
    return (
        bool((ours.double() - exact).abs().max() <= rtol * max(1e-3, exact.abs().max()))
        if exact.numel()
        else True
    )


def differences(answers: list[Answer], exact: Answer, batch: Batch, rtol: float = 1e-11) -> list[str]:
    """Name what differs between the answers of all ranks and the whole batch's."""
    size = len(answers)
    # "mean" and "sum" are back-propagated by every rank: features get their sum, which averaging would undo.
    copies = 1 if exact.value.dim() else size
    found = []
    for rank, answer in enumerate(answers):
        own = batch.shard(rank)
        rows = slice(sum(batch.layout.rows[:rank]), sum(batch.layout.rows[: rank + 1]))
        value = exact.value[rows] if exact.value.dim() else exact.value
        if not close(answer.value, value, rtol):
            found.append(f"value on rank {rank}: {answer.value} not {value}")
        for name in ("dscale", "dbias"):
            whole = getattr(exact, name)
            whole = None if whole is None else whole * copies / size
            if not close(getattr(answer, name), whole, rtol):
                found.append(f"{name} on rank {rank}: {getattr(answer, name)} not {whole}")
        assert answer.dx is not None and answer.dx.shape == own.x.shape
        assert answer.dy is not None and answer.dy.shape == own.y.shape
    for name in ("dx", "dy"):
        ours = torch.cat([getattr(answer, name) for answer in answers]) / copies
        if not close(ours, getattr(exact, name), rtol):
            found.append(f"{name}: {ours} not {getattr(exact, name)}")
    return found


def all_losses(batch: Batch, losses: list[Loss], options: dict[str, Any]) -> list[Answer]:
    """Run on a rank: every loss on this rank's shard."""
    own = batch.shard(dist.get_rank())
    return [differentiate(own, loss, group=dist.group.WORLD, **options) for loss in losses]


def wrong(
    ranks: Pool, world: int, batch: Batch, losses: Sequence[Loss], **options: Any
) -> dict[str, list[str]]:
    """Return what differs, by loss, when a world computes losses of a batch."""
    losses = [loss for loss in losses if batch.applies(loss)]
    by_rank = ranks.run(all_losses, world, batch, losses, options)
    found = {}
    for loss, *answers in zip(losses, *by_rank, strict=True):
        found[str(loss)] = differences(answers, truth(batch, loss), batch)
    return {loss: lines for loss, lines in found.items() if lines}


#: What the quick tests run of the whole grid: every mode, layout and world.
QUICK = {
    (1, "gather", "even"),
    (2, "ring", "extra texts"),
    (2, "gather", "empty shard"),
    (3, "gather", "uneven"),
}
QUICK |= {(3, "ring", "first shards empty"), (4, "ring", "uneven"), (4, "gather", "extra texts")}


@pytest.mark.parametrize(
    ("world", "mode", "layout"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product((1, 2, 3, 4), MODES, LAYOUTS)
    ],
)
def test_equals_the_whole_batch(ranks: Pool, world: int, mode: str, layout: str) -> None:
    assert wrong(ranks, world, Batch.random(Layout.named(layout, world)), LOSSES, mode=mode) == {}


#: One of each kind: rows and columns, rows alone, sigmoid, labels on both sides.
KINDS = [LOSSES[2], LOSSES[9], LOSSES[13], LOSSES[15]]


def test_the_truth_is_the_oracle() -> None:
    """Where a batch is an ordinary one, its dense truth is the reference backend's answer."""
    batch = Batch.random(Layout((7,), (9,), 1))
    for loss in LOSSES:
        if batch.applies(loss):
            answer = differentiate(batch, loss, backend="reference")
            assert differences([answer], truth(batch, loss), batch) == [], loss


@pytest.mark.parametrize("mode", MODES)
def test_reference_backend(ranks: Pool, mode: str) -> None:
    batch = Batch.random(Layout.named("uneven", 3))
    assert wrong(ranks, 3, batch, KINDS, mode=mode, backend="reference") == {}


def in_small_blocks(*arguments: Any) -> list[Answer]:
    """Run on a rank: all losses in blocks of 2 rows and 3 columns, the first few kept between the passes."""
    with mock.patch.object(CpuBackend, "block_shape", lambda self, m, n: (2, 3)):
        return all_losses(*arguments)


@pytest.mark.skipif(CpuBackend().unavailable_reason() is not None, reason="needs the C++ extension")
@pytest.mark.parametrize("mode", MODES)
def test_many_blocks_some_kept(ranks: Pool, mode: str) -> None:
    batch = Batch.random(Layout((9, 4, 7), (9, 4, 7)))
    for products in (20, 75):  # kept of this rank's own piece only; of others too
        options = {"mode": mode, "backend": "cpu", "workspace": products * 8 / 2**20}
        by_rank = ranks.run(in_small_blocks, 3, batch, KINDS, options)
        for loss, *answers in zip(KINDS, *by_rank, strict=True):
            assert differences(answers, truth(batch, loss), batch) == [], loss


@pytest.mark.parametrize("mode", MODES)
def test_all_pairs_share_a_label(ranks: Pool, mode: str) -> None:
    """No pair has a negative: columns of other ranks have nothing to sum up here."""
    batch = Batch.random(Layout.named("uneven", 3))
    ones = tuple(torch.ones_like(labels) for labels in batch.labels)
    batch = replace(batch, labels=ones)
    losses = [loss for loss in LOSSES if loss.labels]
    assert wrong(ranks, 3, batch, losses, mode=mode) == {}


def one_tensor_of_labels(batch: Batch, options: dict[str, Any]) -> Answer:
    """Run on a rank: pairs whose two sides have the same labels."""
    own = batch.shard(dist.get_rank())
    own = replace(own, labels=own.labels[1])  # type: ignore[arg-type]
    loss = Loss("clip_loss", labels=True, options={"multi_positive": True, "normalize": True})
    return differentiate(own, loss, group=dist.group.WORLD, **options)


@pytest.mark.parametrize("mode", MODES)
def test_many_positives_with_one_tensor_of_labels(ranks: Pool, mode: str) -> None:
    batch = Batch.random(Layout.named("empty shard", 3))
    answers = ranks.run(one_tensor_of_labels, 3, batch, {"mode": mode})
    loss = Loss("clip_loss", labels=True, options={"multi_positive": True, "normalize": True})
    exact = truth(replace(batch, labels=(batch.labels[1], batch.labels[1])), loss)
    assert differences(answers, exact, batch) == []


def subgroup(batch: Batch, losses: list[Loss]) -> list[list[Answer]]:
    """Run on four ranks: ranks (2, 0) on one batch and (1, 3) on another, as groups and as a mesh's dimension."""
    members = [dist.new_group(pair) for pair in ([0, 2], [1, 3])]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("batch", "other"))
    mine = members[dist.get_rank() % 2]
    answers = []
    for group, mode in (
        (mine, "gather"),
        (mine, "ring"),
        (mesh["batch"], "ring"),
        (mesh["batch"].get_group(), "gather"),
    ):
        own = batch.shard(dist.get_rank() // 2)
        answers.append([differentiate(own, loss, group=group, mode=mode) for loss in losses])
    return answers


def test_subgroups_and_meshes(ranks: Pool) -> None:
    batch = Batch.random(Layout((3, 5), (3, 5)))
    by_rank = ranks.run(subgroup, 4, batch, KINDS)
    for first, second in ((0, 2), (1, 3)):
        for theirs in zip(by_rank[first], by_rank[second], strict=True):
            for loss, *answers in zip(KINDS, *theirs, strict=True):
                assert differences(answers, truth(batch, loss), batch) == [], loss


def in_dtype(batch: Batch, loss: Loss, dtype: torch.dtype, options: dict[str, Any]) -> Answer:
    """Run on a rank: one loss on features of a dtype."""
    return differentiate(batch.shard(dist.get_rank()), loss, dtype, group=dist.group.WORLD, **options)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-10)]
)
def test_dtypes(ranks: Pool, dtype: torch.dtype, rtol: float) -> None:
    """16-bit features travel as they are, their gradients are summed in float32 and rounded once."""
    batch = Batch.random(Layout.named("uneven", 3))
    batch = batch.rounded(dtype)
    loss = Loss("clip_loss", labels=True, bias=True, options={"normalize": True})
    for mode in MODES:
        answers = ranks.run(in_dtype, 3, batch, loss, dtype, {"mode": mode})
        assert all(answer.dx.dtype == answer.dy.dtype == dtype for answer in answers)  # type: ignore[union-attr]
        exact = differentiate(batch, loss, backend="reference")
        # Scale and bias are sums of terms that cancel, and too small to be judged by themselves.
        answers = [replace(a, dscale=exact.dscale, dbias=exact.dbias) for a in answers]
        assert differences(answers, exact, batch, rtol) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_fitted_batch_keeps_its_digits(ranks: Pool, mode: str) -> None:
    """At a loss of 1e-9 the gradient in float32 is still exact to 1e-5: the positive stays out of all sums."""
    batch = Batch.random(Layout.named("uneven", 3))
    x = F.normalize(batch.x, dim=1).float().double()
    batch = replace(batch, x=x, y=x.clone(), scale=60.0)
    for loss in (Loss("clip_loss"), Loss("info_nce_loss")):
        exact = differentiate(batch, loss, backend="reference")
        assert 0 < exact.value < 1e-3
        answers = ranks.run(in_dtype, 3, batch, loss, torch.float32, {"mode": mode})
        assert differences(answers, exact, batch, rtol=1e-4) == []


def triton_ranks(batch: Batch, losses: list[Loss], mode: str) -> list[Answer]:
    """Run on a rank: losses on the interpreted Triton backend, in float32."""
    os.environ["TRITON_INTERPRET"] = "1"
    return [in_dtype(batch, loss, torch.float32, {"backend": "triton", "mode": mode}) for loss in losses]


needs_interpreter = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="needs Triton's interpreter"
)


@pytest.mark.slow
@needs_interpreter
@pytest.mark.parametrize("mode", MODES)
def test_triton_backend(ranks: Pool, mode: str) -> None:
    batch = Batch.random(Layout.named("empty shard", 3))
    batch = batch.rounded(torch.float32)
    losses = KINDS[:3]
    by_rank = ranks.run(triton_ranks, 3, batch, losses, mode, limit=300)
    for loss, *answers in zip(losses, *by_rank, strict=True):
        assert (
            differences(answers, differentiate(batch, loss, backend="reference"), batch, rtol=3e-5) == []
        ), loss
