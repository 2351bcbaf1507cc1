"""Set up what every test run shares: threads, hypothesis, Triton's interpreter, and fixtures for kernel tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.poison import poisoned_empty

# Triton reads this when it is imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Examples are the same in every run: a failure found anywhere reproduces everywhere. To search wider:
#   pytest --hypothesis-profile=thorough
settings.register_profile(
    "default", derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", derandomize=False, max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_configure() -> None:
    # Several pytest-xdist workers on one machine share its cores.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Fill uninitialised memory with NaN throughout a test module."""
    with poisoned_empty():
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run a module of small problems on one thread: faster for them, and results do not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
