"""Fill dataclasses from a file's plain values: unknown names are refused with the nearest, and types are checked."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Triple = tuple[float, float, float]

_NEAR = 0.56  # of difflib's similarity; "lrate" for "lr" has 0.57

_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    NoneType: "nothing",
    Triple: "three numbers",
}


class ConfigError(Exception):
    """A setting that cannot work; the message names the flag, what came and the remedy."""


def fill(base: Any, values: Any, source: str) -> dict[str, Any]:
    """Return the sections of a config with values from a file in them.

    Args:
        base: a dataclass whose fields, the sections, are dataclasses: what keys have that are not given.
        values: settings by section and key.
        source: what messages call the file.

    Raises:
        ConfigError: an unknown section or key (one that is near is named), or a value of the wrong type.
    """
    sections = {
        field.name: get_type_hints(type(getattr(base, field.name))) for field in dataclasses.fields(base)
    }
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source} must be settings by section ({', '.join(sections)}), got {values!r}")
    parts = {}
    for section, settings in values.items():
        if section not in sections:
            nearest = suggest(section, sections) + _home(section, sections)
            raise ConfigError(
                f"unknown section {section!r} in {source}{nearest}; sections are {', '.join(sections)}"
            )
        if not isinstance(settings, Mapping):
            raise ConfigError(f"section {section} of {source} must be settings by name, got {settings!r}")
        hints, read = sections[section], {}
        for key, value in settings.items():
            if key not in hints:
                nearest = suggest(key, hints) + _home(key, sections)
                raise ConfigError(f"unknown key {section}.{key} in {source}{nearest}")
            read[key] = _read(value, hints[key], f"{section}.{key} in {source}")
        parts[section] = dataclasses.replace(getattr(base, section), **read)
    return parts


def suggest(word: object, known: Iterable[str], prefix: str = "") -> str:
    """Return "; did you mean …?" with the known word that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=_NEAR)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _home(key: object, sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Say where a key belongs that stands in the wrong section."""
    homes = [section for section, hints in sections.items() if key in hints]
    return f" ({key} belongs into section {homes[0]})" if homes else ""


def _read(value: Any, hint: Any, name: str) -> Any:
    """Return a value as the type it must have. (YAML takes 1e-3 for a text.)"""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if option is NoneType and value is None:
            return None
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is float and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                return float(value)
        if option in (bool, int, str) and type(value) is option:
            return value
        if option is Triple and isinstance(value, list | tuple) and len(value) == 3:
            with contextlib.suppress(TypeError, ValueError):
                return tuple(float(number) for number in value)
    wanted = " or ".join(
        f"one of {', '.join(get_args(option))}" if get_origin(option) is Literal else _WORDS[option]
        for option in options
    )
    raise ConfigError(f"{name} must be {wanted}, got {value!r}")
