"""What a model is made of, as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Self

ACTIVATIONS = ("gelu", "quick_gelu")
STEMS = ("patch", "conv")
POOLS = ("token", "mean")


@dataclass(frozen=True)
class VisionConfig:
    """Describe a vision transformer.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of the square one token stands for, pixels; divides image_size.
        width: features per token; a multiple of heads.
        layers, heads: transformer blocks, and attention heads in each. With stem "conv" and pool "mean", layers may
            be 0: a plain convolutional network.
        mlp_ratio: hidden over outer width of the feed-forward layers.
        stem: "patch", one strided convolution as in ViT, or "conv", convolutions that halve the side step by
            step (patch_size is then a power of two, and width a multiple of half of it).
        pool: "token", the class token's output, or "mean" over the patches, without a class token.
        mean, std: of each channel of pictures in [0, 1]; the input is normalised with them.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    stem: str = "patch"
    pool: str = "token"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's training pictures
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        _check_positive(self, "image_size", "patch_size", "width", "heads", "mlp_ratio")
        _check_transformer(self)
        _check_choice(self, "stem", STEMS)
        _check_choice(self, "pool", POOLS)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size {self.patch_size}, got {self.image_size}"
            )
        if not self.layers and (self.stem, self.pool) != ("conv", "mean"):
            raise ValueError("layers must be at least 1, unless stem is 'conv' and pool is 'mean'")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"patch_size must be a power of two with stem='conv', got {self.patch_size}")
        if self.stem == "conv" and self.width % max(self.patch_size // 2, 1):
            raise ValueError(
                f"width must be a multiple of patch_size / 2 = {self.patch_size // 2} with stem='conv', "
                f"got {self.width}"
            )
        for name in ("mean", "std"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must have 3 entries, one a channel, got {getattr(self, name)}")


@dataclass(frozen=True)
class TextConfig:
    """Describe a causal text transformer.

    Args:
        width: features per token; a multiple of heads.
        layers, heads: transformer blocks, and attention heads in each.
        mlp_ratio: hidden over outer width of the feed-forward layers.
        context_length: the most tokens a text can have, start and end included.
        vocab_size: token ids lie in [0, vocab_size).
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        _check_positive(self, "width", "heads", "mlp_ratio", "context_length", "vocab_size")
        _check_transformer(self)


@dataclass(frozen=True)
class CLIPConfig:
    """Describe a CLIP: two towers, one space.

    Args:
        vision, text: the towers.
        embed_dim: features of the shared space.
        activation: "gelu", or "quick_gelu", x · sigmoid(1.702 x), which OpenAI's weights need. It has no
            default: weights run under the wrong one give no error, only worse results.
        init_logit_scale: multiplier of the similarities before training.
        init_logit_bias: added to the logits before training (the sigmoid loss wants -10); None: no bias.
    """

    vision: VisionConfig
    text: TextConfig
    embed_dim: int
    activation: str
    init_logit_scale: float = 1 / 0.07
    init_logit_bias: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "embed_dim", "init_logit_scale")
        _check_choice(self, "activation", ACTIVATIONS)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts of plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the config that to_dict described.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range.
        """
        values = dict(values)
        for name, part in (("vision", VisionConfig), ("text", TextConfig)):
            if isinstance(values.get(name), Mapping):
                values[name] = _build(part, values[name], f"{name}.")
        return _build(cls, values)


def _build(cls: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are: {', '.join(known)}"
            raise ValueError(f"unknown key {prefix}{key} in the model config; {hint}")
    try:
        return cls(**values)
    except TypeError as error:  # a required field is missing
        raise ValueError(f"incomplete model config: {error}") from error


def _check_positive(config: Any, *names: str) -> None:
    kinds = {field.name: str(field.type) for field in fields(config)}
    for name in names:
        value = getattr(config, name)
        kind = int if kinds[name] == "int" else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive {kinds[name]}, got {value!r}")


def _check_transformer(config: VisionConfig | TextConfig) -> None:
    if not isinstance(config.layers, int) or config.layers < 0:
        raise ValueError(f"layers must be a non-negative int, got {config.layers!r}")
    if config.width % config.heads:
        raise ValueError(f"width must be a multiple of heads {config.heads}, got {config.width}")


def _check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


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
    "ViT-B-32": CLIPConfig(
        vision=VisionConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12),
        text=TextConfig(width=512, layers=12, heads=8),
        embed_dim=512,
        activation="gelu",
    ),
}
