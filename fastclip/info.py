"""Report what this installation can run and why the rest cannot: ``python -m fastclip.info [--json]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastclip import __version__, backends

#: Left in the package by setup.py where it could not build the C++ extension.
BUILD_REPORT = Path(__file__).with_name("_build_failure.txt")

REMEDY = (
    "install a C++17 compiler (GCC or Clang), then `pip install -e .` in a clone, or else "
    "`pip install --force-reinstall --no-deps --no-cache-dir fastclip-kernels`"
)


def collect() -> dict[str, Any]:
    """Return all that the report says, in JSON's types; a backend's value is None or why it cannot run."""
    return {
        "versions": {
            "fastclip": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
        },
        "executable": sys.executable,
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "extension": _extension(),
        "gpu": _gpu(),
        "backends": {name: backends.unavailable_reason(name) for name in backends.BACKENDS},
    }


def render(info: dict[str, Any]) -> str:
    """Lay out the answer of `collect` for a terminal."""
    cpu, gpu, extension = info["cpu"], info["gpu"], info["extension"]
    rows = [(name, installed or "not installed") for name, installed in info["versions"].items()]
    rows += [("", info["executable"]), ("", info["platform"]), ("", "")]
    rows.append(("CPU", f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads in use"))
    if extension["built"]:
        threading = "threaded with OpenMP" if extension["openmp"] else "single-threaded, built without OpenMP"
        rows.append(("C++", f"{extension['isa']} kernels, {threading}"))
    else:
        rows += [("C++", f"not there: {extension['reason']}"), ("", f"to have it: {REMEDY}")]
    rows += [
        ("GPU", f"{d['name']}, {d['memory_gib']:.0f} GiB, compute capability {d['capability']}")
        for d in gpu["devices"]
    ] or [("GPU", f"none: {gpu['reason']}")]
    rows += [("", ""), ("backend", "available")]
    rows += [(name, f"no: {reason}" if reason else "yes") for name, reason in info["backends"].items()]
    return "\n".join(f"{name:<12}{text}".rstrip().replace("\n", f"\n{'':<12}") for name, text in rows)


def _version(distribution: str) -> str | None:
    # From the metadata: importing triton just to ask would cost more than the rest of the report.
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _extension() -> dict[str, Any]:
    try:
        from fastclip import _C
    except ImportError as error:
        report = BUILD_REPORT.read_text(encoding="utf-8").strip() if BUILD_REPORT.exists() else None
        return {"built": False, "reason": report or str(error)}
    return {"built": True, "isa": _C.isa(), "openmp": _C.openmp}


def _gpu() -> dict[str, Any]:
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    devices = [
        {"name": p.name, "memory_gib": p.total_memory / 2**30, "capability": f"{p.major}.{p.minor}"}
        for p in properties
    ]
    if devices:
        reason = None
    elif torch.version.cuda or torch.version.hip:
        reason = "torch sees no device"
    else:
        reason = "this torch is built for CPU only"
    return {"devices": devices, "reason": reason}


def main(arguments: list[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m fastclip.info", description="Report what fastclip can run here."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(arguments)
    info = collect()
    print(json.dumps(info, indent=2) if options.json else render(info))


if __name__ == "__main__":
    main()
