"""Draw results: time, share of the matmul rate and memory against N.

One figure per objective, width and dtype, beside the result file::

    python -m benchmarks chart benchmarks/results/loss-cpu.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FLOOR = "matmul"

#: Warm for fastclip, blue for torch, green and violet for others; a line of its own for each, in print too.
STYLES: dict[str, dict[str, Any]] = {
    "fastclip triton": {"color": "#d7301f", "marker": "o"},
    "fastclip triton, workspace 0": {"color": "#fc8d59", "marker": "o", "linestyle": "--"},
    "fastclip cpu": {"color": "#d7301f", "marker": "o"},
    "fastclip cpu, workspace 16": {"color": "#fc8d59", "marker": "o", "linestyle": "--"},
    "fastclip reference": {"color": "#b8860b", "marker": "o", "linestyle": ":"},
    "torch": {"color": "#08519c", "marker": "s"},
    "torch, compiled": {"color": "#4292c6", "marker": "s", "linestyle": "--"},
    "torch, chunked loop": {"color": "#1c9099", "marker": "D", "linestyle": "-."},
    "torch, linear_cross_entropy": {"color": "#8c96c6", "marker": "D", "linestyle": ":"},
    "open_clip": {"color": "#2f6b3c", "marker": "^"},
    "open_clip, compiled": {"color": "#66a061", "marker": "^", "linestyle": "--"},
    "memeff": {"color": "#6a51a3", "marker": "v"},
    "Inf-CL": {"color": "#9e9ac8", "marker": "v", "linestyle": "--"},
    "cut-cross-entropy": {"color": "#ae017e", "marker": "P"},
    "siglip-kernel": {"color": "#6a51a3", "marker": "X"},
}

#: Of the floor.
DASHES: dict[str, Any] = {"color": "#8c959f", "linestyle": (0, (4, 3)), "linewidth": 1.2, "zorder": 1}

INK, FAINT = "#24292f", "#d0d7de"

RC: Any = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.6,
    "legend.frameon": False,
}


def draw(document: dict[str, Any], path: Path) -> list[Path]:
    """Draw a result document beside its file; return the paths of the charts.

    Series of a single size are left out: they make no line.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in document["rows"]:
        groups.setdefault((row["objective"], row["dtype"], row["d"]), []).append(row)
    written = []
    for (objective, dtype, d), rows in groups.items():
        if len({row["n"] for row in rows}) > 1:
            target = path.with_name(f"{path.stem}-{objective}-{dtype}-d{d}.png")
            _draw(rows, _title(objective, dtype, d), _origin(document, rows[0]["device"]), target)
            written.append(target)
    return written


def _draw(rows: list[dict], title: str, origin: str, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines: dict[str, list[dict]] = {}
    for row in rows:
        if row.get("seconds") is not None:
            lines.setdefault(row["contender"], []).append(row)
    sizes = sorted({row["n"] for row in rows})
    with plt.rc_context(RC):
        figure, (time, share, memory) = plt.subplots(1, 3, figsize=(12, 4.6))
        for name, points in lines.items():
            _plot(time, name, points, "seconds", 1)
            if name != FLOOR:
                _plot(share, name, points, "floor_share", 100)
                _plot(memory, name, points, "memory", 1)
        share.axhline(100, **DASHES)
        _scale(time, sizes, "Time per step, forward + backward", _seconds)
        _scale(memory, sizes, "Peak memory beyond the inputs", _bytes, base=2)
        _scale(share, sizes, "Share of the matmul rate", lambda value: f"{value:.0f} %", base=None)
        share.set_ylim(0, max(105, share.get_ylim()[1]))
        figure.text(0.008, 0.965, title, ha="left", va="center", fontsize=13, fontweight="bold")
        figure.text(0.008, 0.912, origin, ha="left", va="center", fontsize=8.5, color="#57606a")
        handles, labels = time.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncol=min(5, len(labels)), handlelength=3.2)
        bottom = 0.055 * -(-len(labels) // 5) + 0.02
        figure.tight_layout(rect=(0, bottom, 1, 0.885), w_pad=2.5)
        figure.savefig(target, dpi=180, facecolor="white")
        plt.close(figure)


def _plot(axes: Any, name: str, points: list[dict], field: str, factor: float) -> None:
    points = [point for point in points if point.get(field)]
    if not points:
        return
    own = name.startswith("fastclip") and not name.endswith("reference")
    style = DASHES if name == FLOOR else {"linewidth": 2.2, "zorder": 4} if own else {}
    label = "8 N² D FLOPs of matmul" if name == FLOOR else name
    values = [point[field] * factor for point in points]
    axes.plot([point["n"] for point in points], values, label=label, **{**STYLES.get(name, {}), **style})


def _scale(axes: Any, sizes: list[int], title: str, write: Any, base: int | None = 10) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_title(title, pad=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n) for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("pairs in the batch, N")
    if base is not None:
        axes.set_yscale("log", base=base)
        low, high = axes.get_ylim()
        narrow = base == 10 and high < 100 * low  # powers of ten alone would be one or two marks
        axes.yaxis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if narrow else (1,), numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.tick_params(length=0)


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} µs"


def _bytes(value: float) -> str:
    return f"{value / 2**30:g} GiB" if value >= 2**30 else f"{value / 2**20:g} MiB"


def _title(objective: str, dtype: str, d: int) -> str:
    loss = {"softmax": "CLIP's loss", "sigmoid": "SigLIP's loss"}[objective]
    return f"{loss}, D = {d}, {dtype}"


def _origin(document: dict[str, Any], device: str) -> str:
    versions, cpu = document["versions"], document["cpu"]
    gpus = document.get("gpu") or []
    machine = (
        gpus[0]["name"]
        if device == "cuda" and gpus
        else f"{cpu['model']}, {cpu['threads']} thread{'s' * (cpu['threads'] > 1)}"
    )
    return f"{machine} · torch {versions['torch']} · {document['date'][:10]} · {document['command']}"


def main(arguments: list[str]) -> int:
    """Draw the charts of result files anew."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks chart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON written by another command")
    for path in parser.parse_args(arguments).files:
        print(*draw(json.loads(path.read_text(encoding="utf-8")), path), sep="\n")
    return 0
