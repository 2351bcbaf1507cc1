"""Weights to and from open_clip's models, its tokenizer and its transform, in the environment they need."""

from __future__ import annotations

import pytest

from tests import openclip

MODULE = "tests.models.open_clip_models"
CASES = openclip.names(MODULE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(openclip.MISSING is not None, reason=str(openclip.MISSING)),
]


@pytest.fixture(scope="module")
def complaints() -> dict[str, list[str]]:
    return openclip.complaints_of(MODULE)


@pytest.mark.parametrize("case", CASES)
def test_ours_is_theirs(case: str, complaints: dict[str, list[str]]) -> None:
    assert complaints[case] == []


def test_every_case_was_judged(complaints: dict[str, list[str]]) -> None:
    assert list(complaints) == CASES
