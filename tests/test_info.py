"""`python -m fastclip.info` says what can run here, and for the rest why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastclip
from fastclip import backends, info

MISSING = {"built": False, "reason": "no C++ compiler was found (looked for c++ on PATH)"}


def test_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "fastclip.info"]
    text = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert text.stdout.splitlines()[0].split() == ["fastclip", fastclip.__version__]
    assert text.stderr == ""


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    info.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert report == info.collect()
    assert report["versions"]["torch"] == torch.__version__
    assert report["cpu"]["threads"] == torch.get_num_threads()


def test_backends_are_the_available_ones_and_reasons() -> None:
    reasons = info.collect()["backends"]
    assert tuple(reasons) == tuple(backends.BACKENDS)
    assert tuple(name for name, reason in reasons.items() if reason is None) == fastclip.available_backends()
    assert reasons["reference"] is None


def test_text_repeats_the_reason_of_every_backend() -> None:
    report = info.collect() | {"backends": {"triton": "there is no GPU", "reference": None}}
    lines = [line.split(maxsplit=1) for line in info.render(report).splitlines()[-2:]]
    assert lines == [["triton", "no: there is no GPU"], ["reference", "yes"]]


def test_text_says_how_to_get_a_missing_extension() -> None:
    text = info.render(info.collect() | {"extension": MISSING})
    assert MISSING["reason"] in text
    assert info.REMEDY in text


def test_a_failed_build_is_reported_with_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.txt"
    report.write_text("`cmake --build` failed:\n\nkernels.cpp:1: error\n")
    monkeypatch.setattr(info, "BUILD_REPORT", report)
    monkeypatch.setitem(sys.modules, "fastclip._C", None)  # makes its import fail
    monkeypatch.delattr(fastclip, "_C", raising=False)
    extension = info.collect()["extension"]
    assert extension == {"built": False, "reason": "`cmake --build` failed:\n\nkernels.cpp:1: error"}


def test_gpus_are_listed() -> None:
    device = {"name": "NVIDIA H100", "memory_gib": 79.6, "capability": "9.0"}
    text = info.render(info.collect() | {"gpu": {"devices": [device], "reason": None}})
    assert "NVIDIA H100, 80 GiB, compute capability 9.0" in text


def test_an_unknown_flag_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        info.main(["--jsno"])
    assert error.value.code == 2
    assert "--jsno" in capsys.readouterr().err
