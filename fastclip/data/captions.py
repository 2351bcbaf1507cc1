"""Read captions from text, JSON and table cells, each with the probability that it is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastclip.data.picture import UnreadableError

MAX_CAPTION = 2048  # characters kept; an encoder reads far fewer
MAX_CAPTION_FILE = 1 << 24  # bytes of a .txt or .json that are read

#: Where captions are looked for when no key is named.
USUAL_KEYS = ("captions", "caption", "title", "text", "description", "alt")

_WEIGHTS = ("probabilities", "probs", "weights", "probability", "prob", "weight")


class Captions(NamedTuple):
    """Hold the captions of a picture, at least one."""

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None = None  #: relative probabilities; None: all the same

    def choose(self, draw: float) -> str:
        """Return the caption that ``draw``, in [0, 1), falls on."""
        if self.weights is None:
            return self.texts[int(draw * len(self.texts))]
        left = draw * sum(self.weights)
        for text, weight in zip(self.texts, self.weights, strict=True):
            left -= weight
            if left < 0:
                return text
        return max(zip(self.weights, self.texts, strict=True))[1]  # rounding left nothing: the likeliest


class Keys(NamedTuple):
    """Say which keys or columns hold captions, and how often each is shown."""

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, spec: str | None) -> Keys | None:
        """Read "caption", "alt,recaption" or "alt=0.3,recaption=0.7"; None stays None.

        Raises ValueError if a weight is not a positive number, or only some keys have one.
        """
        if spec is None:
            return None
        parts = [part.strip().partition("=") for part in spec.split(",") if part.strip()]
        names = tuple(name.strip() for name, _, _ in parts)
        if not names or not all(names):
            raise ValueError(
                f"caption_key names no key: {spec!r}; expected for example alt=0.3,recaption=0.7"
            )
        if not any(sign for _, sign, _ in parts):
            return cls(names)
        try:
            weights = tuple(float(weight) for _, _, weight in parts)
        except ValueError:
            weights = (math.nan,)
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                f"caption_key {spec!r} must give every key a positive number, for example alt=0.3,recaption=0.7"
            )
        return cls(names, weights)


def from_text(data: bytes, *, lines: bool) -> Captions:
    """Return the captions of a text file: one a line, or the whole text as one."""
    text = decoded(data)
    return _captions([(part, None) for part in (text.splitlines() if lines else [text])])


def from_json(data: bytes, keys: Keys | None = None) -> Captions:
    """Return the captions of a JSON file; see ``from_value``."""
    text = decoded(data)
    try:
        return from_value(json.loads(text), keys)
    except (ValueError, RecursionError):  # nested without end, or a number of too many digits
        raise UnreadableError("caption is not valid JSON") from None


def from_value(value: object, keys: Keys | None = None) -> Captions:
    """Return the captions in a string, a list, or an object.

    A list holds strings, or objects of a caption and its ``probability``. An object holds one of these under
    one of ``keys`` (by default, the first present of the usual ones), and may hold ``probabilities``, one
    for each caption. Texts under several keys share the weights of their keys. Raises UnreadableError.
    """
    if keys is None or not isinstance(value, dict):
        return _captions(list(_weighted(value)))
    found: list[tuple[str, float | None]] = []
    for number, name in enumerate(keys.names):
        texts = [(text, 1.0 if w is None else w) for text, w in _weighted_under(value, name) if text.strip()]
        total = sum(weight for _, weight in texts)
        share = 1.0 if keys.weights is None else keys.weights[number]
        found += [(text, share * weight / total if total > 0 else weight) for text, weight in texts]
    return _captions(found)


def decoded(data: bytes) -> str:
    """Return UTF-8 ``data`` as text, without a byte-order mark. Raises UnreadableError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableError("caption is not UTF-8") from None


def clean(caption: str) -> str:
    """Return ``caption`` on one line, cut to MAX_CAPTION. Raises UnreadableError if there is nothing on it."""
    caption = " ".join(caption[: 4 * MAX_CAPTION].replace("\0", " ").split())[:MAX_CAPTION]
    if not caption:
        raise UnreadableError("no caption")
    # What a decoder puts in place of bytes that are not UTF-8, and half characters, which JSON can spell.
    if "\ufffd" in caption or any("\ud800" <= c <= "\udfff" for c in caption):
        raise UnreadableError("caption is not UTF-8")
    return caption


Weighted = tuple[str, float | None]


def _captions(found: Sequence[Weighted]) -> Captions:
    found = [(text, weight) for text, weight in found if text.strip(" \t\r\n\0")]
    if not found:
        raise UnreadableError("no caption")
    texts = tuple(clean(text) for text, _ in found)
    weights = [1.0 if weight is None else weight for _, weight in found]
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
        raise UnreadableError("caption probabilities are not usable")
    if len(set(weights)) == 1:
        return Captions(texts)
    return Captions(texts, tuple(weights))


def _weighted(value: object) -> Iterator[Weighted]:
    """Yield the texts of a string, a list or an object, with their weights."""
    if isinstance(value, str):
        yield value, None
    elif isinstance(value, list):
        for item in value:
            yield from _weighted(item)
    elif isinstance(value, dict):
        for key in USUAL_KEYS:
            if value.get(key) is not None:
                yield from _weighted_under(value, key)
                return


def _weighted_under(value: dict, key: str) -> Iterator[Weighted]:
    inside = value.get(key)
    weights = next((value[name] for name in _WEIGHTS if value.get(name) is not None), None)
    if isinstance(inside, str):
        yield inside, _number(weights) if not isinstance(weights, list) else None
    elif isinstance(inside, list) and isinstance(weights, list):
        if len(inside) != len(weights):
            raise UnreadableError("caption probabilities are not usable")
        for item, weight in zip(inside, weights, strict=True):
            for text, _ in _weighted(item):
                yield text, _number(weight)
    else:
        yield from _weighted(inside)


def _number(weight: object) -> float | None:
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UnreadableError("caption probabilities are not usable")
    try:
        return float(weight)
    except OverflowError:
        raise UnreadableError("caption probabilities are not usable") from None
