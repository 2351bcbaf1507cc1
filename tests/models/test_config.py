"""Configs go to JSON and back, and refuse what they do not know."""

import json
from dataclasses import replace

import pytest

from fastclip.models import PRESETS, CLIPConfig, TextConfig, VisionConfig

DEMO = PRESETS["demo"]


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name):
    config = PRESETS[name]
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_key_is_named_with_the_nearest_one():
    values = DEMO.to_dict()
    values["vision"]["hed"] = 3
    with pytest.raises(ValueError, match=r"unknown key vision\.hed .*did you mean vision\.heads"):
        CLIPConfig.from_dict(values)
    with pytest.raises(ValueError, match=r"unknown key zzz .*known are: vision, text, embed_dim, activation"):
        CLIPConfig.from_dict({**DEMO.to_dict(), "zzz": 1})


def test_missing_key_is_named():
    values = DEMO.to_dict()
    del values["activation"]
    with pytest.raises(ValueError, match=r"incomplete.*activation"):
        CLIPConfig.from_dict(values)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "vision",
            {"image_size": 50, "patch_size": 8},
            "image_size must be a multiple of patch_size 8",
        ),
        ("vision", {"stem": "pach"}, "stem must be one of patch, conv, got 'pach'"),
        ("vision", {"pool": "max"}, "pool must be one of"),
        ("vision", {"stem": "conv", "image_size": 48, "patch_size": 6}, "power of two"),
        ("vision", {"mean": (0.5, 0.5)}, "mean must have 3 entries"),
        ("vision", {"width": 0}, "width must be a positive int, got 0"),
        ("vision", {"layers": 0, "pool": "token"}, "layers must be at least 1, unless stem is 'conv'"),
        ("vision", {"width": 126, "heads": 2}, "width must be a multiple of patch_size / 2 = 4"),
        ("vision", {"layers": -1}, "layers must be a non-negative int, got -1"),
        ("text", {"heads": 7}, "width must be a multiple of heads 7"),
        ("text", {"context_length": 7.5}, "context_length must be a positive int, got 7.5"),
        ("text", {"vocab_size": True}, "vocab_size must be a positive int"),
    ],
)
def test_values_out_of_range_are_named(part, change, message):
    with pytest.raises(ValueError, match=message):
        replace(getattr(DEMO, part), **change)


def test_activation_has_no_default_and_no_synonyms():
    with pytest.raises(ValueError, match="activation must be one of gelu, quick_gelu, gelu_tanh, got 'relu'"):
        replace(DEMO, activation="relu")
    with pytest.raises(TypeError, match="activation"):
        CLIPConfig(VisionConfig(32, 8, 16, 1, 2), TextConfig(16, 1, 2), 16)  # type: ignore[call-arg]


def test_scale_must_be_positive():
    with pytest.raises(ValueError, match="init_logit_scale must be a positive float, got -1"):
        replace(DEMO, init_logit_scale=-1)
