"""Cases that have to run in .venv-openclip, which `make openclip` prepares, and what the tests here make of them.

A module of cases defines ``CASES``, a dict of functions by name, each returning what is wrong, and ends with
``judge(CASES, open_clip.__version__)``. It cannot be imported outside that environment.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-openclip" / "bin" / "python"

#: Why the cases cannot run here, or None.
MISSING = None if PYTHON.exists() else f"there is no {PYTHON.relative_to(ROOT)}: make openclip"


def judge(cases: Mapping[str, Callable[[], list[str]]], version: str) -> None:
    """Run all cases, over there; print {case: [complaints]}."""
    logging.disable()
    torch.set_num_threads(1)
    complaints = {}
    for name, case in cases.items():
        try:
            complaints[name] = case()
        except Exception as error:  # one broken case says nothing of the others
            complaints[name] = [f"{type(error).__name__}: {error}"]
    print(json.dumps({"open_clip": version, "complaints": complaints}))


def names(module: str) -> list[str]:
    """Return the names of a module's cases, read off its source."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    return re.findall(r'^    "(.+?)": ', source, re.MULTILINE)


def complaints_of(module: str) -> dict[str, list[str]]:
    """Run a module of cases over there; return its complaints by case."""
    done = subprocess.run(
        [str(PYTHON), "-m", module],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["open_clip"].startswith("3.")
    return result["complaints"]
