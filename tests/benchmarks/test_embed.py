"""The embedding benchmark: both models agree, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program


@pytest.mark.slow
def test_embed_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    arguments = [
        "embed",
        "--small",
        "--turns",
        "1",
        "--pictures",
        "2",
        "--texts",
        "8",
        "--output",
        str(tmp_path),
    ]
    assert program.main(arguments) == 0
    assert "texts, padded to 77" in capsys.readouterr().out
    document = json.loads((tmp_path / "embed-cpu-small.json").read_text())
    assert document["command"] == "python -m benchmarks embed --small --turns 1 --pictures 2 --texts 8"
    rows = {row["what"]: row for row in document["rows"]}
    assert all(row["ratio"] > 0 and row["fastclip_per_second"] > 0 for row in rows.values())
    assert all(rows[what]["difference"] < 1e-5 for what in rows if "files" not in what)
    assert rows["pictures from files"]["difference"] < 0.05  # two decoders
