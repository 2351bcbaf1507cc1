"""Training over ranks gives the gradient of the whole batch: DDP, FSDP2, gradient caching, open_clip's convention."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastclip
from fastclip.grad_cache import cached_backward
from fastclip.models import CLIP, CLIPConfig
from fastclip.models.config import TextConfig, VisionConfig
from tests.distributed.models import Towers, gradients, inputs
from tests.distributed.pool import Pool


def whole_batch(rows: int, function: str = "clip_loss") -> dict[str, Tensor]:
    """Return the exact gradients of the whole batch, in one process and plain steps."""
    model = Towers()
    out = model(*inputs(rows))
    getattr(fastclip, function)(
        out["image"], out["text"], out["scale"], normalize=True, backend="reference"
    ).backward()
    return gradients(model)


def mine(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the whole batch."""
    return tuple(t.split(sizes)[dist.get_rank()] for t in inputs(sum(sizes)))  # type: ignore[return-value]


def assert_equal(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert ours.keys() == exact.keys()
    for name, grad in exact.items():
        assert ours[name] is not None, name
        torch.testing.assert_close(
            ours[name], grad, rtol=1e-10, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}"
        )


def ddp_step(sizes: tuple[int, ...], function: str, mode: str) -> dict[str, Tensor]:
    model = DistributedDataParallel(Towers())
    out = model(*mine(sizes))
    loss = getattr(fastclip, function)
    loss(
        out["image"], out["text"], out["scale"], normalize=True, group=dist.group.WORLD, mode=mode
    ).backward()
    return gradients(model)


@pytest.mark.parametrize(
    ("function", "mode", "sizes"),
    [
        ("clip_loss", "gather", (5, 0, 3)),
        ("clip_loss", "ring", (2, 6, 3)),
        ("siglip_loss", "ring", (4, 4, 4)),
    ],
)
def test_ddp_averages_to_the_exact_gradient(
    ranks: Pool, function: str, mode: str, sizes: tuple[int, ...]
) -> None:
    exact = whole_batch(sum(sizes), function)
    for ours in ranks.run(ddp_step, 3, sizes, function, mode):
        assert_equal(ours, exact)


def ddp_half_steps() -> dict[str, Tensor]:
    """Share batches between pairs of ranks, and parameters among all four."""
    halves = [dist.new_group(pair) for pair in ([0, 1], [2, 3])]
    model = DistributedDataParallel(Towers())
    out = model(*mine((4, 2, 3, 3)))
    group = halves[dist.get_rank() // 2]
    fastclip.clip_loss(out["image"], out["text"], out["scale"], normalize=True, group=group).backward()
    return gradients(model)


def test_subgroups_under_ddp_give_the_mean_of_their_losses(ranks: Pool) -> None:
    model = Towers()
    out = model(*inputs(12))
    halves = zip(out["image"].split(6), out["text"].split(6), strict=True)
    sum(fastclip.clip_loss(x, y, out["scale"], normalize=True) for x, y in halves).div(2).backward()  # type: ignore[union-attr]
    for ours in ranks.run(ddp_half_steps, 4):
        assert_equal(ours, gradients(model))


def fsdp_step(sizes: tuple[int, ...], micro: int | None) -> dict[str, Tensor]:
    model = Towers()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for tower in (model.image, model.text):
        fully_shard(tower, mesh=mesh)
    fully_shard(model, mesh=mesh)
    images, texts = mine(sizes)
    if micro is None:
        out = model(images, texts)
        loss = fastclip.clip_loss(out["image"], out["text"], out["scale"], normalize=True, group=mesh)
        loss.backward()
    else:
        cached_backward(
            lambda x, y: fastclip.clip_loss(x, y, model(None, None)["scale"], normalize=True, group=mesh),
            (lambda a: model(a, None)["image"], images),
            (lambda b: model(None, b)["text"], texts),
            micro_batch_size=micro,
            module=model,
        )
    return gradients(model)


@pytest.mark.parametrize(("micro", "sizes"), [(None, (3, 5)), (2, (3, 4)), (5, (3, 5))])
def test_fsdp2_averages_to_the_exact_gradient(ranks: Pool, micro: int | None, sizes: tuple[int, ...]) -> None:
    exact = whole_batch(sum(sizes))
    for ours in ranks.run(fsdp_step, 2, sizes, micro):
        assert_equal(ours, exact)


def cached_ddp_step(
    sizes: tuple[int, ...], micro: int, mode: str, with_scaler: bool
) -> tuple[dict[str, Tensor], int]:
    """Take a cached step under DDP; return the gradients and how many buckets were averaged."""
    model = Towers(checkpointed=True)
    ddp = DistributedDataParallel(model)
    averaged = 0

    def count(state, bucket):  # type: ignore[no-untyped-def]  # DDP takes annotations for types, or none
        nonlocal averaged
        averaged += 1
        work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    ddp.register_comm_hook(None, count)
    images, texts = mine(sizes)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if with_scaler else None
    loss = cached_backward(
        lambda x, y: fastclip.clip_loss(
            x, y, model.log_scale.exp(), normalize=True, group=dist.group.WORLD, mode=mode
        ),
        (lambda a: ddp(a, None)["image"], images),
        (lambda b: ddp(None, b)["text"], texts),
        micro_batch_size=micro,
        module=ddp,
        scaler=scaler,
    )
    whole = model(*inputs(sum(sizes)))
    exact = fastclip.clip_loss(whole["image"], whole["text"], whole["scale"], normalize=True)
    assert torch.allclose(loss, exact.detach(), rtol=1e-12)
    grads = gradients(ddp)
    return ({name: grad / 1024 for name, grad in grads.items()} if with_scaler else grads), averaged


@pytest.mark.parametrize(
    ("sizes", "micro", "mode", "scaler"),
    [((7, 2, 4), 3, "gather", False), ((6, 6, 6), 2, "ring", True), ((4, 0, 3), 2, "gather", False)],
)
def test_gradient_caching_under_ddp(
    ranks: Pool, sizes: tuple[int, ...], micro: int, mode: str, scaler: bool
) -> None:
    exact = whole_batch(sum(sizes))
    for ours, averaged in ranks.run(cached_ddp_step, 3, sizes, micro, mode, scaler):
        assert_equal(ours, exact)
        assert averaged == 1  # one bucket, once


def misused_modules() -> list[str]:
    """Return the errors of encoders that bypass DDP, and of DDP options that do not fit."""
    model = Towers()
    images, texts = inputs(4)
    said = []
    for options, through in (
        ({}, False),
        ({"find_unused_parameters": True}, True),
        ({"static_graph": True}, True),
    ):
        ddp = DistributedDataParallel(model, **options)
        encoders = (lambda a, ddp=ddp: ddp(a, None)["image"], lambda b, ddp=ddp: ddp(None, b)["text"])
        encode_image, encode_text = encoders if through else (model.image, model.text)
        try:
            cached_backward(
                lambda x, y: fastclip.clip_loss(x, y, 1.0),
                (encode_image, images),
                (encode_text, texts),
                micro_batch_size=2,
                module=ddp,
            )
        except ValueError as error:
            said.append(str(error))
    return said


def test_misused_modules_are_noticed(ranks: Pool) -> None:
    for bypassed, unused, static in ranks.run(misused_modules, 2):
        assert "bypass" in bypassed
        assert "find_unused_parameters=True" in unused and "static_graph=True" in static


class Encoders(nn.Module):
    """fastclip's own small CLIP, with dropout on its features, encoding under autocast what it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        vision = VisionConfig(image_size=8, patch_size=4, width=16, layers=2, heads=2)
        text = TextConfig(context_length=6, vocab_size=50, width=16, layers=2, heads=2)
        self.clip = CLIP(CLIPConfig(embed_dim=12, vision=vision, text=text, activation="gelu"))
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor | None, tokens: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.clip.encode_image(images) if images is not None else self.clip.encode_text(tokens)
            return self.dropout(x).float()


def encoders_step(cached: bool) -> dict[str, Tensor]:
    """Take a step on this rank's 7 pairs: cached under DDP, or with all graphs kept and averaged by hand."""
    generator = torch.Generator().manual_seed(10 + dist.get_rank())
    images = torch.randn(7, 3, 8, 8, generator=generator)
    tokens = torch.randint(1, 50, (7, 6), generator=generator)
    model = Encoders()
    torch.manual_seed(20 + dist.get_rank())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        scale = model.clip.logit_scale.exp()
        return fastclip.clip_loss(x, y, scale, normalize=True, group=dist.group.WORLD)

    if cached:
        ddp = DistributedDataParallel(model)
        towers = (lambda a: ddp(a, None), images), (lambda b: ddp(None, b), tokens)
        cached_backward(loss, *towers, micro_batch_size=3, module=ddp)
        return gradients(ddp)
    x = torch.cat([model(chunk, None) for chunk in images.split(3)])
    y = torch.cat([model(None, chunk) for chunk in tokens.split(3)])
    loss(x, y).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad.div_(dist.get_world_size()))  # type: ignore[union-attr]
    return gradients(model)


def test_real_encoders_with_dropout_autocast_and_ddp(ranks: Pool) -> None:
    """The cached step equals the one that keeps all activations, scale included."""
    plain, cached = ranks.run(encoders_step, 2, False)[0], ranks.run(encoders_step, 2, True)[0]
    assert plain.keys() == cached.keys() and "clip.logit_scale" in plain
    for name, exact in plain.items():
        error = (cached[name] - exact).norm() / exact.norm().clamp_min(1e-6)
        assert error < 1e-3, (name, error)  # bfloat16 gradients are summed in another order


# open_clip's losses and trainer beside ours


def open_clip_losses() -> ModuleType:
    """Load open_clip's losses from the package: they need torch alone, its other modules torchvision and timm."""
    package = importlib.util.find_spec("open_clip")
    folders = list(package.submodule_search_locations or ()) if package else []
    folders += [
        str(path) for path in Path(__file__).parents[2].glob(".venv-openclip/lib/*/site-packages/open_clip")
    ]
    if not folders:
        raise ModuleNotFoundError("open_clip is not installed: pip install --no-deps open_clip_torch")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(folders[0]) / "loss.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: (local_loss, gather_with_grad)
OPTIONS = [(False, False), (False, True), (True, True), (True, False)]


def open_clip_table(theirs: bool, pairs: int) -> list[dict[str, Tensor]]:
    """Take a DDP step with each of the options; return the averaged gradients."""
    losses = open_clip_losses() if theirs else fastclip
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = []
    for local, with_grad in OPTIONS:
        model = DistributedDataParallel(Towers())
        out = model(*mine((pairs // size,) * size))
        loss = losses.ClipLoss(local, with_grad, rank=rank, world_size=size)
        x, y = F.normalize(out["image"], dim=-1), F.normalize(out["text"], dim=-1)
        loss(x, y, out["scale"], output_dict=True)["contrastive_loss"].backward()
        rows.append(gradients(model))
    return rows


def towers(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for name, grad in grads.items() if name != "log_scale"])


def compared(grads: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float, float]:
    """Return the towers' gradient over the exact one (norm, and cosine), and the scale's."""
    ours, whole = towers(grads), towers(exact)
    return (
        (ours.norm() / whole.norm()).item(),
        F.cosine_similarity(ours, whole, dim=0).item(),
        (grads["log_scale"] / exact["log_scale"]).item(),
    )


def test_open_clip_convention(ranks: Pool) -> None:
    """After DDP's averaging every choice of options gives the exact gradient, with ours."""
    exact = whole_batch(16)
    for rows in ranks.run(open_clip_table, 4, False, 16):
        for ours in rows:
            assert_equal(ours, exact)


def test_open_clips_own_losses_beside_ours(ranks: Pool) -> None:
    """The table of docs/scaling.md: what the gradients are with open_clip's own losses."""
    try:
        open_clip_losses()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    exact = whole_batch(16)
    table = [compared(grads, exact) for grads in ranks.run(open_clip_table, 4, True, 16)[0]]
    close = pytest.approx
    assert table[0] == close((1 / 4, 1, 1)), "no local loss, no gradient through the gathering: 1/W of it"
    assert table[1] == close((1, 1, 1))
    assert table[2] == close((1, 1, 1))
    norm, cosine, scale = table[3]
    assert 0.2 < norm < 0.8 and 0.8 < cosine < 0.9999 and scale == close(1), table[3]


def siglip_table(dist_impl: str, pairs: int, theirs: bool) -> tuple[Tensor, dict[str, Tensor]]:
    losses = open_clip_losses() if theirs else fastclip
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(Towers())
    out = model(*mine((pairs // size,) * size))
    x, y = F.normalize(out["image"], dim=-1), F.normalize(out["text"], dim=-1)
    loss = losses.SigLipLoss(rank=rank, world_size=size, dist_impl=dist_impl)
    value = loss(x, y, out["scale"], torch.tensor(-1.0, dtype=x.dtype))
    value.backward()
    dist.all_reduce(mean := value.detach().clone())
    return mean / size, gradients(model)


def test_siglip_modules(ranks: Pool) -> None:
    try:
        open_clip_losses()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    for dist_impl in ("bidir", "gather"):
        ours = ranks.run(siglip_table, 3, dist_impl, 12, False)
        theirs = ranks.run(siglip_table, 3, dist_impl, 12, True)
        for (value, grads), (their_value, their_grads) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, their_value)
            assert_equal(grads, their_grads)


def ntxent(world_rows: int) -> tuple[Tensor, Tensor]:
    views = torch.randn(2, 3 * world_rows, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    own = [view.split(world_rows)[dist.get_rank()].clone().requires_grad_() for view in views]
    loss = fastclip.NTXentLoss(gather_distributed=True)(*own)
    loss.backward()
    return loss.detach(), torch.stack([view.grad for view in own])  # type: ignore[arg-type]


def test_ntxent_over_ranks(ranks: Pool) -> None:
    views = torch.randn(
        2, 12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).requires_grad_()
    exact = fastclip.NTXentLoss()(*views)
    exact.backward()
    results = ranks.run(ntxent, 3, 4)
    for value, _ in results:
        torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(torch.cat([grad for _, grad in results], dim=1) / 3, views.grad)
