"""What a model is made of, as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Self

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh")
STEMS = ("patch", "conv")
IMAGE_POOLS = ("token", "mean", "map")
TEXT_POOLS = ("argmax", "eos", "last")
RESIZES = ("crop", "squash")

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training pictures
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class VisionConfig:
    """Describe a vision transformer.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of the square one token stands for, pixels; divides image_size. (With pool "map" it need
            not: SigLIP's 384 / 14 leaves the last 6 pixels out.)
        width: features per token; a multiple of heads.
        layers, heads: transformer blocks, and attention heads in each. With stem "conv" and pool "mean", layers may
            be 0: a plain convolutional network.
        mlp_ratio: hidden over outer width of the feed-forward layers.
        stem: "patch", one strided convolution as in ViT, or "conv", convolutions that halve the side step by
            step (patch_size is then a power of two, and width a multiple of half of it).
        pool: "token", the class token's output; "mean" over the patches, or "map", multi-head attention of one
            learned query over the patches as in SigLIP, both without a class token.
        mean, std: of each channel of pictures in [0, 1]; the input is normalised with them.
        pre_norm: a layer norm between the position embedding and the blocks, as OpenAI has.
        patch_bias: a bias in the strided convolution, as SigLIP has.
        projection: a matrix from width to embed_dim; without it the two are equal.
        norm_eps: added to the variance by layer norms.
        patch_dropout: share of the patches that training leaves out, drawn anew for every picture, in [0, 1).
        resize: how a picture becomes square: "crop" (shorter side to image_size, then the centre) or "squash".
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    stem: str = "patch"
    pool: str = "token"
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD
    pre_norm: bool = True
    patch_bias: bool = False
    projection: bool = True
    norm_eps: float = 1e-5
    patch_dropout: float = 0.0
    resize: str = "crop"

    def __post_init__(self) -> None:
        _check_positive(self, "image_size", "patch_size", "width", "heads", "mlp_ratio", "norm_eps")
        _check_transformer(self)
        _check_choice(self, "stem", STEMS)
        _check_choice(self, "pool", IMAGE_POOLS)
        _check_choice(self, "resize", RESIZES)
        _check_triples(self)
        if self.image_size % self.patch_size and (self.stem, self.pool) != ("patch", "map"):
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
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must lie in [0, 1), got {self.patch_dropout!r}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ResNetConfig:
    """Describe OpenAI's modified ResNet: three-convolution stem, anti-aliased strides, attention pooling.

    Args:
        image_size: side of the square input, pixels; a multiple of 32.
        depths: bottleneck blocks in each of the four stages.
        width: channels of the stem; the last stage has 32 times as many.
        heads: of the attention pool; divides 32 · width.
        mean, std, resize: as in VisionConfig.
    """

    image_size: int
    depths: tuple[int, int, int, int]
    width: int = 64
    heads: int = 32
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD
    resize: str = "crop"

    def __post_init__(self) -> None:
        _check_positive(self, "image_size", "width", "heads")
        _check_choice(self, "resize", RESIZES)
        _check_triples(self)
        object.__setattr__(self, "depths", tuple(self.depths))
        if len(self.depths) != 4 or not all(isinstance(n, int) and n > 0 for n in self.depths):
            raise ValueError(f"depths must be four positive ints, one a stage, got {self.depths}")
        if self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32, got {self.image_size}")
        if self.width % 2 or 32 * self.width % self.heads:
            raise ValueError(
                f"width must be even, and 32 · width a multiple of heads {self.heads}, got width {self.width}"
            )

    @property
    def grid(self) -> int:
        """Positions along one side of the last stage's map."""
        return self.image_size // 32


@dataclass(frozen=True)
class TextConfig:
    """Describe a text transformer.

    Args:
        width: features per token; a multiple of heads.
        layers, heads: transformer blocks, and attention heads in each.
        mlp_ratio: hidden over outer width of the feed-forward layers.
        context_length: the most tokens a text can have, start and end included.
        vocab_size: token ids lie in [0, vocab_size).
        causal: a token attends to itself and those before it only; False (SigLIP): to all, padding included.
        pool: the token a text is read off at: "argmax", the first with the row's highest id (CLIP's end token has
            the highest of all); "eos", the first with id eos_id; "last", the last of the row (SigLIP).
        eos_id: id of the end token, for pool "eos".
        projection: a matrix from width to embed_dim; without it the two are equal.
        projection_bias: a bias beside that matrix, as SigLIP has.
        norm_eps: added to the variance by layer norms.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    context_length: int = 77
    vocab_size: int = 49408
    causal: bool = True
    pool: str = "argmax"
    eos_id: int = 49407
    projection: bool = True
    projection_bias: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_positive(self, "width", "heads", "mlp_ratio", "context_length", "vocab_size", "norm_eps")
        _check_transformer(self)
        _check_choice(self, "pool", TEXT_POOLS)
        if self.pool == "eos" and not 0 <= self.eos_id < self.vocab_size:
            raise ValueError(
                f"eos_id must lie in [0, {self.vocab_size}) with pool='eos', got {self.eos_id!r}"
            )
        if self.projection_bias and not self.projection:
            raise ValueError("projection_bias must be False where projection is False")


class _Model:
    """What configs of whole models have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts of plain values, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses


@dataclass(frozen=True)
class ImageTowerConfig(_Model):
    """Describe an image tower by itself; its arguments are CLIPConfig's."""

    vision: VisionConfig | ResNetConfig
    embed_dim: int
    activation: str

    def __post_init__(self) -> None:
        _check_space(self)


@dataclass(frozen=True)
class TextTowerConfig(_Model):
    """Describe a text tower by itself; its arguments are CLIPConfig's."""

    text: TextConfig
    embed_dim: int
    activation: str

    def __post_init__(self) -> None:
        _check_space(self)


@dataclass(frozen=True)
class CLIPConfig(_Model):
    """Describe a CLIP: two towers, one space.

    Args:
        vision, text: the towers.
        embed_dim: features of the shared space.
        activation: "gelu"; "quick_gelu", x · sigmoid(1.702 x), which OpenAI's weights need; or "gelu_tanh", GELU by
            tanh, which SigLIP's need. It has no default: weights run under the wrong one give no error, only worse
            results.
        init_logit_scale: multiplier of the similarities before training.
        init_logit_bias: added to the logits before training (the sigmoid loss wants -10); None: no bias.
    """

    vision: VisionConfig | ResNetConfig
    text: TextConfig
    embed_dim: int
    activation: str
    init_logit_scale: float = 1 / 0.07
    init_logit_bias: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "init_logit_scale")
        _check_space(self)

    @property
    def image_tower(self) -> ImageTowerConfig:
        """The image tower's part."""
        return ImageTowerConfig(self.vision, self.embed_dim, self.activation)

    @property
    def text_tower(self) -> TextTowerConfig:
        """The text tower's part."""
        return TextTowerConfig(self.text, self.embed_dim, self.activation)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the config that to_dict described.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range.
        """
        return _build(cls, _with_parts(values))


AnyConfig = CLIPConfig | ImageTowerConfig | TextTowerConfig


def config_from_dict(values: Mapping[str, Any]) -> AnyConfig:
    """Build the config that to_dict described, of two towers or of the one it has.

    Raises:
        ValueError: a key is unknown or missing, or a value is out of range.
    """
    if "text" not in values:
        return _build(ImageTowerConfig, _with_parts(values))
    if "vision" not in values:
        return _build(TextTowerConfig, _with_parts(values))
    return CLIPConfig.from_dict(values)


def _with_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(values)
    if isinstance(vision := values.get("vision"), Mapping):
        values["vision"] = _build(ResNetConfig if "depths" in vision else VisionConfig, vision, "vision.")
    if isinstance(text := values.get("text"), Mapping):
        values["text"] = _build(TextConfig, text, "text.")
    return values


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


def _check_triples(config: VisionConfig | ResNetConfig) -> None:
    for name in ("mean", "std"):  # JSON has lists only
        object.__setattr__(config, name, tuple(getattr(config, name)))
        if len(getattr(config, name)) != 3:
            raise ValueError(f"{name} must have 3 entries, one a channel, got {getattr(config, name)}")


def _check_space(config: AnyConfig) -> None:
    """Check what a model's towers share."""
    _check_positive(config, "embed_dim")
    _check_choice(config, "activation", ACTIVATIONS)
    for tower in (getattr(config, "vision", None), getattr(config, "text", None)):
        if (
            isinstance(tower, VisionConfig | TextConfig)
            and not tower.projection
            and tower.width != config.embed_dim
        ):
            raise ValueError(
                f"embed_dim must be {tower.width}, the width of a tower without projection, "
                f"got {config.embed_dim}"
            )
