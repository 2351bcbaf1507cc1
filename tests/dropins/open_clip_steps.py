"""open_clip's (and lightly's) own losses on open_clip's models, theirs against ours: prints {case: [complaints]}.

Run by tests/dropins/test_open_clip.py with the interpreter of .venv-openclip, which `make openclip` prepares.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks import torchvision_stub

torchvision_stub.prepare()

import lightly.loss  # noqa: E402
import open_clip  # noqa: E402
import open_clip.factory  # noqa: E402
import open_clip.loss as theirs  # noqa: E402
from open_clip.coca_model import CoCa, MultimodalCfg  # noqa: E402
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # noqa: E402
from open_clip_train.train import train_one_epoch  # noqa: E402

import fastclip  # noqa: E402
import fastclip.open_clip as ours  # noqa: E402
from tests.dropins.steps import Step, compare, model_step, step  # noqa: E402
from tests.openclip import judge  # noqa: E402

PAIRS, TOKENS, VOCABULARY, WIDTH = 12, 8, 64, 32
NAMES = ("ClipLoss", "SigLipLoss", "CoCaLoss", "DistillClipLoss")

_VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
_TEXT = {"context_length": TOKENS, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 1}


def clip(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return CLIP(WIDTH, CLIPVisionCfg(**_VISION), CLIPTextCfg(**_TEXT), output_dict=True, **options)


def siglip() -> nn.Module:
    return clip(init_logit_scale=math.log(10), init_logit_bias=-10.0)


def coca() -> nn.Module:
    torch.manual_seed(0)
    text = CLIPTextCfg(**_TEXT, embed_cls=True, output_tokens=True)
    vision = CLIPVisionCfg(**_VISION, attentional_pool=True, attn_pooler_heads=2, output_tokens=True)
    model = CoCa(WIDTH, MultimodalCfg(**_TEXT), text, vision)
    for parameter in model.parameters():  # some are left as the memory was
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


def batch(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(PAIRS, 3, 32, 32, generator=generator).to(dtype)
    return images, torch.randint(1, VOCABULARY, (PAIRS, TOKENS), generator=generator)


# A step of open_clip's training loop: loss(**model_out, output_dict=True), and the sum of what it answers.


def training_step(model: nn.Module, loss: nn.Module, dtype: torch.dtype, teacher: nn.Module | None) -> Step:
    model, given = copy.deepcopy(model).to(dtype), batch(dtype)

    def total() -> torch.Tensor:
        model_out = model(*given)
        if teacher is not None:
            with torch.no_grad():
                dist_model_out = copy.deepcopy(teacher).to(dtype)(*given)
            model_out.update({f"dist_{name}": value for name, value in dist_model_out.items()})
        return sum(loss(**model_out, output_dict=True).values())  # type: ignore[return-value]

    return model_step(model, total)


def on_model(
    name: str, make: Callable[[], nn.Module], *arguments: Any, teacher: nn.Module | None = None
) -> list[str]:
    model = make()
    z_max = model.logit_scale.exp().item() + (10.0 if getattr(model, "logit_bias", None) is not None else 0.0)
    losses = [getattr(module, name)(*arguments) for module in (theirs, ours)]
    return compare(*(partial(training_step, model, loss, teacher=teacher) for loss in losses), z_max)


def on_features(name: str, scale: float, bias: float | None = None) -> list[str]:
    """Judge a loss by its features' rows and its scalars, at a scale of CLIP's later training, too."""
    generator = torch.Generator().manual_seed(2)
    x, y = (nn.functional.normalize(torch.randn(70, 48, generator=generator), dim=1) for _ in range(2))

    def evaluate(loss: nn.Module, dtype: torch.dtype) -> Step:
        leaves = {"image_features": x, "text_features": y, "logit_scale": torch.tensor(scale)}
        if bias is not None:
            leaves["logit_bias"] = torch.tensor(bias)
        leaves = {key: leaf.to(dtype).clone().requires_grad_() for key, leaf in leaves.items()}
        return step(lambda: loss(**leaves), leaves)

    losses = [getattr(module, name)() for module in (theirs, ours)]
    features = ["image_features", "text_features"]
    return compare(*(partial(evaluate, loss) for loss in losses), scale + abs(bias or 0.0), features)


def signatures() -> list[str]:
    """Find parameters of theirs that ours lacks, or has elsewhere or with another default."""
    found = []
    for name in NAMES:
        for function in ("__init__", "forward"):
            their, our = (
                list(inspect.signature(getattr(getattr(module, name), function)).parameters.values())
                for module in (theirs, ours)
            )
            for want, got in zip(their, our, strict=False):
                same_default = got.default == want.default or want.default is want.empty
                if want.name != got.name or want.kind is not got.kind or not same_default:
                    found.append(f"{name}.{function}: {got} instead of {want}")
            if len(our) < len(their):
                found.append(f"{name}.{function}: lacks {their[len(our) :]}")
    return found


def answers() -> list[str]:
    """Find answers whose type or keys differ."""
    found = []
    clip_out, coca_out = clip()(*batch()), coca()(*batch())
    dist = {f"dist_{name}": value for name, value in clip_out.items()}
    for name, arguments, given in (
        ("ClipLoss", (), clip_out),
        ("SigLipLoss", (), siglip()(*batch())),
        ("CoCaLoss", (2.0, 1.0), coca_out),
        ("CoCaLoss", (2.0, 0.0), coca_out),
        ("DistillClipLoss", (), {**clip_out, **dist}),
    ):
        for more in ({"output_dict": True}, {"output_dict": False}, {}):
            their, our = (getattr(module, name)(*arguments)(**given, **more) for module in (theirs, ours))
            shapes = [
                {key: value.shape for key, value in answer.items()}
                if isinstance(answer, dict)
                else [value.shape for value in (answer if isinstance(answer, tuple) else (answer,))]
                for answer in (their, our)
            ]
            if type(their) is not type(our) or shapes[0] != shapes[1]:
                found.append(f"{name}(**{more}): {shapes[1]} instead of {shapes[0]}")
    return found


def training_loop(
    name: str, make: Callable[[], nn.Module], accum_freq: int, distill: bool = False
) -> list[str]:
    """Run open_clip's own training loop with either loss; find parameters that end up elsewhere."""
    arguments = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=distill,
        accum_freq=accum_freq,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=1.0,
        rank=0,
        local_rank=0,
        log_local=False,
        log_every_n_steps=1,
        batch_size=PAIRS,
        world_size=1,
        wandb=False,
    )
    loader = [batch(seed=seed) for seed in range(4)]
    dataloader = type("Loader", (list,), {"num_batches": 4, "num_samples": 4 * PAIRS})(loader)
    data = {"train": SimpleNamespace(dataloader=dataloader, set_epoch=lambda epoch: None)}
    ends = []
    for module in (theirs, ours):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss, teacher = getattr(module, name)(cache_labels=True), clip(seed=9)
        train_one_epoch(model, data, loss, 0, optimizer, None, None, teacher, arguments)
        ends.append(dict(model.named_parameters()))
    start = dict(make().named_parameters())
    found = []
    for key, their in ends[0].items():
        moved = (their - start[key]).abs().max().item()
        error = (ends[1][key] - their).abs().max().item()
        if error > 1e-4 * moved + 1e-7:
            found.append(f"{key}: {error:.3g} apart after moving {moved:.3g}")
    return found


def factory() -> list[str]:
    """Find losses that open_clip's factory still makes of its own classes after docs/open_clip.md's three lines."""
    for name in ours.__all__:
        setattr(open_clip.factory, name, getattr(ours, name))
    arguments = {
        "distill": False,
        "siglip": False,
        "model": "ViT-B-32",
        "horovod": False,
        "loss_dist_impl": None,
    }
    arguments |= {"local_loss": True, "gather_with_grad": True, "rank": 0, "world_size": 1}
    arguments |= {"coca_caption_loss_weight": 2.0, "coca_contrastive_loss_weight": 1.0}
    found = []
    for name, more in (
        ("ClipLoss", {}),
        ("SigLipLoss", {"siglip": True}),
        ("CoCaLoss", {"model": "coca_ViT-B-32"}),
        ("DistillClipLoss", {"distill": True}),
    ):
        loss = open_clip.create_loss(SimpleNamespace(**{**arguments, **more}))
        if type(loss) is not getattr(ours, name):
            found.append(f"{type(loss)} instead of {name}")
    return found


def simclr(temperature: float) -> list[str]:
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(66, 24, generator=generator)

    def evaluate(loss: nn.Module, dtype: torch.dtype) -> Step:
        leaf = views.to(dtype).clone().requires_grad_()
        return step(lambda: loss(*leaf.chunk(2)), {"views": leaf})

    losses = (lightly.loss.NTXentLoss(temperature), fastclip.NTXentLoss(temperature))
    return compare(*(partial(evaluate, loss) for loss in losses), 1 / temperature, ["views"])


CASES: dict[str, Callable[[], list[str]]] = {
    "signatures": signatures,
    "answers": answers,
    "ClipLoss": partial(on_model, "ClipLoss", clip),
    "ClipLoss with a bias": partial(on_model, "ClipLoss", siglip),
    "SigLipLoss": partial(on_model, "SigLipLoss", siglip),
    "CoCaLoss": partial(on_model, "CoCaLoss", coca, 2.0, 1.0),
    "DistillClipLoss": lambda: on_model("DistillClipLoss", clip, teacher=clip(seed=9)),
    "ClipLoss of features": partial(on_features, "ClipLoss", 14.3),
    "ClipLoss of features at scale 100": partial(on_features, "ClipLoss", 100.0),
    "SigLipLoss of features": partial(on_features, "SigLipLoss", 10.0, -10.0),
    "ClipLoss in their loop": partial(training_loop, "ClipLoss", clip, 1),
    "ClipLoss in their loop, accumulating": partial(training_loop, "ClipLoss", clip, 2),
    "SigLipLoss in their loop, accumulating": partial(training_loop, "SigLipLoss", siglip, 2),
    "DistillClipLoss in their loop": partial(training_loop, "DistillClipLoss", clip, 1, distill=True),
    "factory": factory,
    "lightly's NTXentLoss": partial(simclr, 0.5),
    "lightly's NTXentLoss, cold": partial(simclr, 0.07),
}


if __name__ == "__main__":
    judge(CASES, open_clip.__version__)
