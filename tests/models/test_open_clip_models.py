"""Weights to and from open_clip's models, its tokenizer and its transform, in the environment they need."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-openclip" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"there is no {PYTHON.relative_to(ROOT)}: make openclip"),
]

#: By name, as declared in open_clip_models.py, which cannot be imported here.
CASES = re.findall(
    r'^    "(.+?)": ', Path(__file__).with_name("open_clip_models.py").read_text(), re.MULTILINE
)


@pytest.fixture(scope="module")
def complaints() -> dict[str, list[str]]:
    done = subprocess.run(
        [str(PYTHON), "-m", "tests.models.open_clip_models"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["open_clip"].startswith("3.")
    return result["complaints"]


@pytest.mark.parametrize("case", CASES)
def test_ours_is_theirs(case: str, complaints: dict[str, list[str]]) -> None:
    assert complaints[case] == []


def test_every_case_was_judged(complaints: dict[str, list[str]]) -> None:
    assert list(complaints) == CASES
