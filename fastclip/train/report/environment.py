"""Describe the machine and the software a run was made with."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

import fastclip


def environment() -> dict[str, str]:
    """Return what decides speed and bits: versions, processor, threads, memory, GPUs."""
    facts = {
        "fastclip": fastclip.__version__,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores seen, {torch.get_num_threads()} threads used",
    }
    if memory := _memory():
        facts["memory"] = f"{memory / 2**30:.1f} GiB"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        facts[f"GPU {number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    facts["loss backends"] = ", ".join(fastclip.available_backends())
    facts["command"] = " ".join(["python -m fastclip.train", *sys.argv[1:]])
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
