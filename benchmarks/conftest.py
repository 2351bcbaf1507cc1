"""``pytest benchmarks/``: the cases of `python -m benchmarks`, under pytest-benchmark."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import SUITES
from benchmarks.contenders import CONTENDERS, fitting


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "what to measure, of benchmarks/cases.py (default: %(default)s)"
    parser.addoption("--suite", choices=SUITES, default="brief", help=help)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "contender"} <= set(metafunc.fixturenames):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        suite = SUITES[metafunc.config.getoption("--suite")]
        chosen = [
            pytest.param(case, who, id=f"{case.label} {who.name}")
            for series in suite
            for case in series.cases(device)
            for who in fitting(CONTENDERS, case.objective, device)
        ]
        metafunc.parametrize(("case", "contender"), chosen)
