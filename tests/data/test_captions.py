"""Captions from text and JSON, and how often each is shown."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclip.data.captions import MAX_CAPTION, Captions, Keys, clean, from_json, from_text, from_value
from fastclip.data.picture import UnreadableError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("one", Captions(("one",))),
        (["a", "b", 3, None, " "], Captions(("a", "b"))),
        ({"caption": "inside", "width": 3}, Captions(("inside",))),
        ({"captions": ["a", "b"], "caption": "not this"}, Captions(("a", "b"))),
        ({"caption": None, "text": "the next usual key"}, Captions(("the next usual key",))),
        ({"captions": ["a", "b"], "probabilities": [0.2, 0.8]}, Captions(("a", "b"), (0.2, 0.8))),
        ({"captions": ["a", "b"], "weights": [2, 2]}, Captions(("a", "b"))),
        (
            [{"caption": "a", "probability": 0.9}, {"caption": "b", "weight": 1}],
            Captions(("a", "b"), (0.9, 1.0)),
        ),
        (["a", {"caption": "b", "prob": 3}], Captions(("a", "b"), (1.0, 3.0))),
    ],
)
def test_captions_come_in_many_shapes(value: object, expected: Captions) -> None:
    assert from_value(value) == expected
    assert from_json(json.dumps(value).encode()) == expected


def test_keys_share_out_their_weights() -> None:
    value = {"alt": "old", "recaption": ["new", "newer"], "caption": "unused"}
    assert from_value(value, Keys.parse("alt")) == Captions(("old",))
    assert from_value(value, Keys.parse("alt=1,recaption=3")) == Captions(
        ("old", "new", "newer"), (1.0, 1.5, 1.5)
    )
    assert from_value({"alt": "old"}, Keys.parse("alt=0.3,recaption=0.7")) == Captions(("old",))
    assert from_value("a string has no keys", Keys.parse("alt")) == Captions(("a string has no keys",))
    with pytest.raises(UnreadableError, match=r"^no caption$"):
        from_value(value, Keys.parse("missing"))


def test_each_caption_is_shown_as_often_as_it_weighs() -> None:
    captions = Captions(("a", "b", "c"), (1.0, 0.0, 3.0))
    draws = np.random.default_rng(0).random(4000)
    shown = Counter(captions.choose(draw) for draw in draws)
    assert shown["b"] == 0 and 900 < shown["a"] < 1100
    assert Captions(("a", "b")).choose(0.4999) == "a" and Captions(("a", "b")).choose(0.5) == "b"
    assert Captions(("a", "b"), (0.1, 0.2)).choose(np.nextafter(1, 0)) == "b"


@pytest.mark.parametrize(
    "weights",
    [[1], [1, -1], [0, 0], ["x", 1], [float("nan"), 1], [float("inf"), 1], [True, 1], [10**400, 1]],
)
def test_probabilities_that_are_none_are_refused(weights: list[object]) -> None:
    with pytest.raises(UnreadableError, match=r"^caption probabilities are not usable$"):
        from_value({"captions": ["a", "b"], "probabilities": weights})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no caption"),
        (b"\xef\xbb\xbf \r\n", "no caption"),
        (b"\0\0", "no caption"),
        (b"caf\xe9", "caption is not UTF-8"),
        ("replaced \ufffd already".encode(), "caption is not UTF-8"),
    ],
)
def test_text_that_is_no_caption_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        from_text(data, lines=False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "caption is not valid JSON"),
        (b"[" * 100_000, "caption is not valid JSON"),
        (b"9" * 10_000, "caption is not valid JSON"),
        (b"[" * 800 + b"]" * 800, "no caption"),
        (b'{"caption": 3}', "no caption"),
        (b"null", "no caption"),
        (b'"half \\ud800 a character"', "caption is not UTF-8"),
        (b"\xff", "caption is not UTF-8"),
    ],
)
def test_json_that_is_no_caption_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        from_json(data)


def test_lines_are_captions_or_one_caption() -> None:
    data = "\ufefffirst\n\n  second line \r\n".encode()
    assert from_text(data, lines=True).texts == ("first", "second line")
    assert from_text(data, lines=False).texts == ("first second line",)


@given(st.text())
def test_a_clean_caption_is_one_line_that_can_be_encoded(text: str) -> None:
    try:
        caption = clean(text)
    except UnreadableError:
        return
    assert 0 < len(caption) <= MAX_CAPTION
    assert len(caption.splitlines()) == 1 and caption == caption.strip() and "\0" not in caption
    caption.encode()


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (lambda: from_json(data), lambda: from_text(data, lines=True)):
        try:
            assert all(read().texts)
        except UnreadableError as error:
            assert str(error)


@pytest.mark.parametrize("spec", ["", "a=", "a=1,b", "a=-1", "a=nan", "=1", "a=x"])
def test_keys_that_make_no_sense_are_an_error(spec: str) -> None:
    with pytest.raises(ValueError, match="caption_key"):
        Keys.parse(spec)
    assert Keys.parse(None) is None
