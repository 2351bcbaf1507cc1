"""Distillation over ranks: value and every gradient equal those of the whole batch in one process."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import fastclip
import fastclip.open_clip
from tests.distributed.oracle import Answer, Batch, Layout
from tests.distributed.pool import Pool
from tests.distributed.test_exact import MODES, differences, needs_interpreter

TEACHER_SCALE = 2.3


def teacher_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the teacher's features of the same pairs, wider than the student's."""
    widen = torch.randn(batch.x.shape[1], 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (batch.x + batch.x.roll(1, 1)) @ widen, batch.y @ widen


def differentiate(
    batch: Batch, teacher: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float64, **options: Any
) -> Answer:
    x, y = (features.to(dtype, copy=True).requires_grad_() for features in (batch.x, batch.y))
    scale = torch.tensor(
        batch.scale, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True
    )
    tx, ty = (features.to(dtype) for features in teacher)
    value = fastclip.distill_loss(x, y, scale, tx, ty, TEACHER_SCALE, **options)
    value.backward()
    return Answer(value.detach(), x.grad, y.grad, scale.grad, None)  # type: ignore[arg-type]


def on_rank(batch: Batch, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Answer:
    """Run on a rank: the loss of its shard of student and teacher."""
    if options.get("backend") == "triton":
        os.environ["TRITON_INTERPRET"] = "1"
    rank, layout = dist.get_rank(), batch.layout
    (rows, cols) = (slice(sum(part[:rank]), sum(part[: rank + 1])) for part in (layout.rows, layout.cols))
    tx, ty = teacher_of(batch)
    return differentiate(batch.shard(rank), (tx[rows], ty[cols]), dtype, group=dist.group.WORLD, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("world", "layout"),
    [(1, "even"), (2, "empty shard"), (3, "uneven"), (3, "first shards empty"), (4, "extra texts")],
)
def test_equals_the_whole_batch(ranks: Pool, world: int, layout: str, mode: str) -> None:
    batch = Batch.random(Layout.named(layout, world))
    for options in ({}, {"normalize": True, "reduction": "sum", "backend": "reference"}):
        answers = ranks.run(on_rank, world, batch, {**options, "mode": mode})
        exact = differentiate(batch, teacher_of(batch), **options)
        assert differences(answers, exact, batch) == []


@pytest.mark.slow
@needs_interpreter
@pytest.mark.parametrize("mode", MODES)
def test_triton_backend(ranks: Pool, mode: str) -> None:
    batch = Batch.random(Layout.named("uneven", 3))
    batch = batch.rounded(torch.float32)
    teacher = tuple(features.float().double() for features in teacher_of(batch))
    options = {"normalize": True, "mode": mode}
    answers = ranks.run(on_rank, 3, batch, {**options, "backend": "triton"}, torch.float32, limit=300)
    exact = differentiate(batch, teacher, backend="reference", **options)
    assert differences(answers, exact, batch, rtol=3e-5) == []


def disagreeing() -> list[str]:
    """Run on a rank: what rank 1 has otherwise: the teacher's width, its dtype, a scale with a gradient."""
    other, said = dist.get_rank() == 1, []
    student = torch.ones(4, 6, dtype=torch.bfloat16, requires_grad=True)
    for width, dtype, needed in (
        (7 + other, torch.float32, False),
        (7, torch.float32 if other else torch.bfloat16, False),
        (7, torch.float32, other),
    ):
        teacher, scale = torch.ones(4, width, dtype=dtype), torch.tensor(1.0, requires_grad=needed)
        try:
            fastclip.distill_loss(student, student, scale, teacher, teacher, 1.0, group=dist.group.WORLD)
            said.append("no error")
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_differs_is_refused_on_every_rank(ranks: Pool) -> None:
    said = ranks.run(disagreeing, 2)
    assert said[0] == said[1]
    width, dtype, needed = said[0]
    assert "width E of the teacher's features is 7 on rank 0, 8 on rank 1" in width
    assert "dtype of the teacher's features is torch.bfloat16 on rank 0, torch.float32 on rank 1" in dtype
    assert "a gradient needed by" in needed


def module(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run on a rank: open_clip's signature."""
    own = batch.shard(dist.get_rank())
    x, y = own.x.clone().requires_grad_(), own.y
    loss = fastclip.open_clip.DistillClipLoss(rank=dist.get_rank(), world_size=dist.get_world_size())
    answer = loss(x, y, own.scale, x.detach().flip(1), y, TEACHER_SCALE, output_dict=True)
    sum(answer.values()).backward()
    return answer["contrastive_loss"].detach(), answer["distill_loss"].detach(), x.grad


def test_the_module_of_open_clips_name(ranks: Pool) -> None:
    batch = Batch.random(Layout.named("even", 2))
    by_rank = ranks.run(module, 2, batch)
    x = batch.x.clone().requires_grad_()
    student = (x, batch.y, batch.scale)
    distilled = fastclip.distill_loss(*student, batch.x.flip(1), batch.y, TEACHER_SCALE)
    contrastive = fastclip.clip_loss(*student)
    (contrastive + distilled).backward()
    for theirs in by_rank:
        torch.testing.assert_close(theirs[:2], (contrastive.detach(), distilled.detach()))
    torch.testing.assert_close(torch.cat([theirs[2] for theirs in by_rank]) / 2, x.grad)
