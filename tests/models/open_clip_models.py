"""open_clip's own models, tokenizer and transform against ours: prints {case: [complaints]}.

Run by tests/models/test_open_clip_models.py with the interpreter of .venv-openclip, which `make openclip` prepares.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import torchvision_stub

torchvision_stub.prepare()

import open_clip  # noqa: E402
import timm  # noqa: E402
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP  # noqa: E402
from PIL import Image  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from fastclip.convert import convert  # noqa: E402
from fastclip.models import CLIP as OurCLIP  # noqa: E402
from fastclip.models import PRESETS, CLIPConfig, ResNetConfig, Tokenizer, load, save  # noqa: E402
from fastclip.models.presets import siglip_vision  # noqa: E402
from fastclip.models.transform import ImageTransform  # noqa: E402
from fastclip.models.weights.open_clip import _TIMM, read_open_clip_config  # noqa: E402
from tests.models.nasty import NASTY, names_a_token  # noqa: E402
from tests.models.tiny import RESNET, SIGLIP, VIT, inputs, randomise  # noqa: E402
from tests.openclip import judge  # noqa: E402

TOLERANCE = 1e-5

#: The smallest of timm's SigLIPs whose activation is that of Google's weights, beside a small text tower.
SIGLIP2 = replace(
    SIGLIP, vision=siglip_vision(256, 32, 768, 12, 12, 3072), embed_dim=768, activation="gelu_tanh"
)


def their_config(config: CLIPConfig) -> dict[str, Any]:
    """Say one of our tiny configs as open_clip's arguments."""
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        vision_cfg = CLIPVisionCfg(layers=list(vision.depths), width=vision.width, image_size=vision.image_size,
                                   head_width=32 * vision.width // vision.heads)  # fmt: skip
    elif vision.pool == "map":
        vision_cfg = CLIPVisionCfg(timm_model_name="tiny_siglip", timm_pool="map", timm_proj="none",
                                   image_size=vision.image_size)  # fmt: skip
    else:
        vision_cfg = CLIPVisionCfg(layers=vision.layers, width=vision.width, patch_size=vision.patch_size,
                                   head_width=vision.width // vision.heads, image_size=vision.image_size)  # fmt: skip
    text_cfg = CLIPTextCfg(context_length=text.context_length, vocab_size=text.vocab_size, width=text.width,
                           heads=text.heads, layers=text.layers)  # fmt: skip
    if not text.causal:
        text_cfg.no_causal_mask, text_cfg.proj_bias, text_cfg.pool_type = True, True, "last"
        text_cfg.norm_kwargs = {"eps": 1e-6}
    return {"embed_dim": config.embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg,
            "quick_gelu": config.activation == "quick_gelu", "init_logit_bias": config.init_logit_bias}  # fmt: skip


@timm.models.register_model
def tiny_siglip(pretrained: bool = False, **options: Any) -> nn.Module:
    vision = SIGLIP.vision
    given = {"img_size": vision.image_size, "num_classes": 0, "global_pool": "map"}
    given |= {name: options[name] for name in given if name in options}
    return VisionTransformer(patch_size=vision.patch_size, embed_dim=vision.width, depth=vision.layers,
                             num_heads=vision.heads, mlp_ratio=vision.mlp_ratio, class_token=False,
                             **given)  # fmt: skip


def theirs(config: CLIPConfig, custom: bool = False) -> nn.Module:
    kind = CustomTextCLIP if custom or config.text.projection_bias else CLIP
    return randomise(kind(**their_config(config)))


def apart(label: str, a: Tensor, b: Tensor) -> list[str]:
    error = (a - b).abs().max().item()
    bound = TOLERANCE * max(1.0, a.abs().max().item())
    return [] if error <= bound else [f"{label}: {error:.3g} apart, at most {bound:.3g}"]


@torch.no_grad()
def compare(model: nn.Module, ours: OurCLIP) -> list[str]:
    images, tokens = inputs(ours.config)
    found = apart("image", model.encode_image(images), ours.encode_image(images))
    found += apart("text", model.encode_text(tokens), ours.encode_text(tokens))
    if isinstance(model, CLIP):
        hidden = model.token_embedding(tokens) + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            hidden = block(hidden, attn_mask=model.attn_mask)
            found += apart(f"layer {i}", hidden, ours.encode_text_tokens(tokens, i + 1, final_norm=False))
        found += apart("tokens", model.ln_final(hidden), ours.encode_text_tokens(tokens))
        if not isinstance(ours.config.vision, ResNetConfig):
            model.visual.output_tokens = True
            patches = model.visual(images)[1]
            model.visual.output_tokens = False
            found += apart("patches", patches, ours.encode_image_tokens(images)[:, 1:])
    return found


def from_file(config: CLIPConfig, custom: bool = False, prefix: str = "", nested: bool = False) -> list[str]:
    """Save their state dict, load it."""
    model = theirs(config, custom)
    with tempfile.TemporaryDirectory() as folder:
        state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
        path = Path(folder) / "weights.pt"
        torch.save({"epoch": 3, "name": "x", "state_dict": state} if nested else state, path)
        return compare(model, load(path, config=config).model)


def to_theirs(config: CLIPConfig) -> list[str]:
    """Convert ours to their folder, which also compares it in their class; then read that folder."""
    with tempfile.TemporaryDirectory() as folder:
        model = randomise(OurCLIP(config))
        save(model, Path(folder) / "ours")
        report = convert(Path(folder) / "ours", Path(folder) / "theirs", "open_clip")
        if not any(line.startswith("by open_clip: differences") for line in report):
            return [f"not compared: {report}"]
        their = open_clip.create_model(f"local-dir:{folder}/theirs").eval()
        return compare(their, model) + compare(their, load(Path(folder) / "theirs").model)


def presets() -> list[str]:
    """Compare names, shapes and activation of every preset that open_clip has, too."""
    found = []
    for name, config in PRESETS.items():
        their_name = "ViT-L-14-336" if name == "ViT-L-14-336" else name
        if their_name not in open_clip.list_models():
            found += [] if name == "demo" or name.endswith("-quickgelu") else [f"open_clip has no {name}"]
            continue
        described = open_clip.get_model_config(their_name)
        if "SigLIP" in name:
            continue  # there the image tower is timm's, and of another size on no account
        read = read_open_clip_config({"model_cfg": described}, name)
        if read != config:
            found.append(f"{name}: {config} in place of {read}")
        with torch.device("meta"):
            their = open_clip.create_model(their_name, device="meta", load_weights=False).state_dict()
            our = OurCLIP(config).state_dict()
        shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (their, our)]
        if shapes[0] != shapes[1]:
            found.append(f"{name}: {set(shapes[0].items()) ^ set(shapes[1].items())}")
    return found


def siglip_presets() -> list[str]:
    """Compare our SigLIPs with theirs, of which only the activation may differ: they run Google's weights by GELU."""
    found = []
    for name in ("ViT-B-16-SigLIP", "ViT-L-16-SigLIP-256", "ViT-SO400M-14-SigLIP-384"):
        read = read_open_clip_config({"model_cfg": open_clip.get_model_config(name)}, name)
        ours = replace(PRESETS[name], activation="gelu", init_logit_scale=read.init_logit_scale)
        if read != ours:
            found.append(f"{name}: {ours} in place of {read}")
    return found


def timms_siglips() -> list[str]:
    """Compare the table of timm's SigLIPs with timm: sizes, and the activation, which leaves no trace in weights."""
    found = []
    for name, (known, activation) in _TIMM.items():
        with torch.device("meta"):
            their = timm.create_model(name, num_classes=0, global_pool="map")
        block, patches = their.blocks[0], their.patch_embed
        size = (patches.img_size[0], patches.patch_size[0], their.embed_dim, len(their.blocks),
                block.attn.num_heads, block.mlp.fc1.out_features)  # fmt: skip
        if size != known:
            found.append(f"{name}: {known} in place of {size}")
        x = torch.linspace(-3, 3, 100)
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[activation]
        for act in (block.mlp.act, their.attn_pool.mlp.act):
            if not torch.equal(act(x), nn.functional.gelu(x, approximate=approximate)):
                found.append(f"{name}: {act} in place of {activation}")
    return found


def tokenizer() -> list[str]:
    """Compare ids of texts without the names of special tokens, which are others in open_clip."""
    found = []
    texts = [text for text in NASTY if not names_a_token(text)]
    for cut in (77, 16, 12_000):
        their, our = open_clip.SimpleTokenizer(context_length=cut)(texts), Tokenizer(cut)(texts)
        found += [
            ascii(text)[:40] for text, a, b in zip(texts, their, our, strict=True) if not torch.equal(a, b)
        ]
    return found


def transform() -> list[str]:
    """Compare the tensors that the transforms make of pictures of odd sizes."""
    found = []
    generator = torch.Generator().manual_seed(0)
    for mode in ("crop", "squash"):
        vision = replace(siglip_vision(224, 16, 32, 1, 2, 64), resize=mode)
        their = open_clip.image_transform(224, is_train=False, mean=vision.mean, std=vision.std,
                                          resize_mode="squash" if mode == "squash" else "shortest",
                                          interpolation="bicubic")  # fmt: skip
        for height, width in ((224, 224), (301, 457), (640, 333), (97, 60), (225, 226)):
            pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
            picture = Image.fromarray(pixels.numpy())
            found += apart(f"{mode} {height}x{width}", their(picture), ImageTransform(vision)(picture))
    return found


CASES: dict[str, Callable[[], list[str]]] = {
    "their ViT": partial(from_file, VIT),
    "their ViT with GELU": partial(from_file, replace(VIT, activation="gelu")),
    "their ViT in CustomTextCLIP": partial(from_file, VIT, custom=True),
    "their ViT behind wrappers": partial(from_file, VIT, prefix="module._orig_mod."),
    "their training checkpoint": partial(from_file, VIT, prefix="module.", nested=True),
    "their ResNet": partial(from_file, RESNET),
    "their SigLIP": partial(from_file, SIGLIP),
    "our ViT": partial(to_theirs, VIT),
    "our ViT with GELU": partial(to_theirs, replace(VIT, activation="gelu")),
    "our ResNet": partial(to_theirs, RESNET),
    "presets": presets,
    "our ViT with GELU by tanh": partial(to_theirs, replace(VIT, activation="gelu_tanh")),
    "our SigLIP with GELU by tanh": partial(to_theirs, SIGLIP2),
    "SigLIP presets": siglip_presets,
    "timm's SigLIPs": timms_siglips,
    "tokenizer": tokenizer,
    "transform": transform,
}


if __name__ == "__main__":
    judge(CASES, open_clip.__version__)
