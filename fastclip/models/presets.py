"""Models by name. Those of OpenAI and open_clip have open_clip's names, and its meaning of them.

A name without "-quickgelu" has GELU, as the models that open_clip's authors trained; OpenAI's weights need the one
with it.
"""

from __future__ import annotations

from dataclasses import replace

from .config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig


def _vit(
    image_size: int,
    patch_size: int,
    vision: tuple[int, int, int],
    text: tuple[int, int, int],
    embed_dim: int,
    mlp_ratio: float = 4.0,
) -> CLIPConfig:
    """Describe a CLIP by (width, layers, heads) of its towers."""
    return CLIPConfig(
        vision=VisionConfig(image_size, patch_size, *vision, mlp_ratio=mlp_ratio),
        text=TextConfig(*text),
        embed_dim=embed_dim,
        activation="gelu",
    )


def siglip_vision(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, hidden: int
) -> VisionConfig:
    """Describe SigLIP's image tower."""
    return VisionConfig(
        image_size,
        patch_size,
        width,
        layers,
        heads,
        mlp_ratio=hidden / width,
        pool="map",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pre_norm=False,
        patch_bias=True,
        projection=False,
        norm_eps=1e-6,
        resize="squash",
    )


def _siglip(vision: VisionConfig) -> CLIPConfig:
    """Describe a SigLIP, whose text tower is as wide and deep as its image tower."""
    text = TextConfig(
        vision.width,
        vision.layers,
        vision.heads,
        vision.mlp_ratio,
        context_length=64,
        vocab_size=32000,
        causal=False,
        pool="last",
        projection_bias=True,
        norm_eps=1e-6,
    )
    return CLIPConfig(vision, text, vision.width, "gelu_tanh", init_logit_scale=10.0, init_logit_bias=-10.0)


_OPENAI = {
    "ViT-B-32": _vit(224, 32, (768, 12, 12), (512, 12, 8), 512),
    "ViT-B-16": _vit(224, 16, (768, 12, 12), (512, 12, 8), 512),
    "ViT-L-14": _vit(224, 14, (1024, 24, 16), (768, 12, 12), 768),
    "ViT-L-14-336": _vit(336, 14, (1024, 24, 16), (768, 12, 12), 768),
    "ViT-H-14": _vit(224, 14, (1280, 32, 16), (1024, 24, 16), 1024),
    "ViT-bigG-14": _vit(224, 14, (1664, 48, 16), (1280, 32, 20), 1280, mlp_ratio=8192 / 1664),
    "RN50": CLIPConfig(
        vision=ResNetConfig(image_size=224, depths=(3, 4, 6, 3)),
        text=TextConfig(512, 12, 8),
        embed_dim=1024,
        activation="gelu",
    ),
}

PRESETS: dict[str, CLIPConfig] = {
    # The emoji demo's, sized for two CPU cores and a few minutes.
    "demo": CLIPConfig(
        vision=VisionConfig(
            image_size=32, patch_size=8, width=128, layers=0, heads=4, stem="conv", pool="mean"
        ),
        text=TextConfig(width=128, layers=1, heads=4),
        embed_dim=128,
        activation="gelu",
    ),
    **_OPENAI,
    **{f"{name}-quickgelu": replace(config, activation="quick_gelu") for name, config in _OPENAI.items()},
    "ViT-B-16-SigLIP": _siglip(siglip_vision(224, 16, 768, 12, 12, 3072)),
    "ViT-L-16-SigLIP-256": _siglip(siglip_vision(256, 16, 1024, 24, 16, 4096)),
    "ViT-SO400M-14-SigLIP-384": _siglip(siglip_vision(384, 14, 1152, 27, 16, 4304)),
}
