"""The table of measured errors: how it is written, and that the published one is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import accuracy
from tests.places import CPU_BACKENDS
from tests.regimes import CASES, LARGE_CASES

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = Path(__file__).parents[1] / "docs" / "accuracy.md"


def test_the_command_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(accuracy, "CASES", [("clip", "D = 48"), ("clip", "one pair"), ("siglip", "bias")])
    monkeypatch.setattr(accuracy, "LARGE_CASES", [])
    page = tmp_path / "docs" / "accuracy.md"
    assert accuracy.main(["--output", str(page), "--dtypes", "float32", "bfloat16"]) == 0
    assert "no bound was broken" in capsys.readouterr().out
    text = page.read_text()
    for backend in CPU_BACKENDS:
        assert f"| {backend} | bfloat16 | 3 |" in text
    assert "| one pair | 0 · (0) · (0) · (0) |" in text, "a saturated gradient is absolute"
    assert "### SigLIP (sigmoid), float32" in text
    assert ", float16\n" not in text


def test_a_broken_bound_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(accuracy, "CASES", [("clip", "D = 48")])
    monkeypatch.setattr(accuracy, "LARGE_CASES", [])
    loss = accuracy.fused("reference")
    monkeypatch.setattr(accuracy, "fused", lambda backend: lambda *args: 1.01 * loss(*args))
    monkeypatch.setattr(accuracy, "places", lambda: [("reference", "cpu")])
    assert accuracy.main(["--output", str(tmp_path / "page.md"), "--dtypes", "float32"]) == 1
    assert "reference: clip, D = 48, float32: dx (2) whole" in capsys.readouterr().out


@pytest.mark.parametrize("objective", accuracy.TITLES)
def test_the_published_table_has_every_case(objective: str) -> None:
    """Backend x objective x dtype x regime, all of them: make it anew with `python -m benchmarks accuracy`."""
    text = PUBLISHED.read_text()
    for dtype in accuracy.DTYPES:
        section = text.split(f"### {accuracy.TITLES[objective]}, {dtype}\n")[1].split("\n#")[0]
        for name in (name for kind, name in (*CASES, *LARGE_CASES) if kind == objective):
            assert f"\n| {name} |" in section
        for backend in ("cpu", "reference", *(["triton"] if dtype != "float64" else [])):
            assert f" {backend} |" in section.strip().splitlines()[0]
