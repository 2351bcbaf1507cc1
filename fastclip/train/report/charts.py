"""Line charts as SVG: they follow the page's colours, and tell their values under the pointer."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 384, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 26
MOST = 400  # points that are drawn of a curve

#: (step, value) of a curve, by its label.
Curves = Mapping[str, Sequence[tuple[float, float]]]


def line_chart(title: str, unit: str, curves: Curves, *, from_zero: bool = True) -> str:
    """Return a figure with curves over steps; a curve of many points is drawn thinned out, with its running mean.

    Args:
        title, unit: said above the chart.
        curves: at most six, none of them empty.
        from_zero: let the vertical axis begin at zero.
    """
    thinned = {label: thin(points) for label, points in curves.items()}
    values = [value for points in thinned.values() for _, value in points]
    low = min(0.0, *values) if from_zero else min(values)
    high = max(values)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    last = max(step for points in thinned.values() for step, _ in points)
    first = min(0.0, *(step for points in thinned.values() for step, _ in points))

    def x(step: float) -> float:
        return LEFT + (step - first) / max(last - first, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / max(high - low, 1e-9) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    for tick in nice_ticks(first, last, 5):
        if first <= tick <= last:
            parts.append(
                f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>'
            )
    for number, points in enumerate(thinned.values()):
        place = [(x(step), y(value)) for step, value in points]
        if len(points) > 40:
            smooth = [(x(step), y(value)) for step, value in running_mean(points)]
            parts.append(f'<path class="raw s{number}" d="{path(place)}"/>')
            parts.append(f'<path class="line s{number}" d="{path(smooth)}"/>')
        else:
            parts.append(f'<path class="line s{number}" d="{path(place)}"/>')
            parts += [f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in place]
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    data = {
        "x": [first, last, LEFT, WIDTH - RIGHT],
        "curves": [
            [label, [[step, significant(value)] for step, value in points]]
            for label, points in thinned.items()
        ],
    }
    legend = ""
    if len(thinned) > 1:
        keys = "".join(
            f'<span class="key s{i}">{html.escape(label)}</span>' for i, label in enumerate(thinned)
        )
        legend = f'<div class="legend">{keys}</div>'
    return (
        f'<figure class="chart"><figcaption><b>{html.escape(title)}</b><span>{html.escape(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)} over steps" '
        f"data-chart='{html.escape(json.dumps(data, separators=(',', ':')), quote=True)}'>{''.join(parts)}</svg>"
        f"{legend}</figure>"
    )


def thin(points: Sequence[tuple[float, float]], most: int = MOST) -> list[tuple[float, float]]:
    """Return at most so many points: means over stretches of equal length."""
    size = math.ceil(len(points) / most)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) if size > 1 else stretch[0]
        for stretch in stretches
    ]


def running_mean(points: Sequence[tuple[float, float]], share: float = 0.04) -> list[tuple[float, float]]:
    """Return the mean of each point and its neighbours within `share` of all, fewer near the ends."""
    reach = max(1, round(share * len(points) / 2))
    smooth = []
    for i, (step, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        window = points[i - near : i + near + 1]
        smooth.append((step, sum(value for _, value in window) / len(window)))
    return smooth


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers that span [low, high]."""
    if not high > low:
        high = low + max(abs(low), 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * power - raw))
    start = math.floor(low / step + 1e-9)
    end = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(start, end + 1)]


def short(value: float) -> str:
    """Return a number for an axis: 12k, 0.25, 5e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:g}"


def significant(value: float) -> float:
    """Return a value with the five digits that a reader may care for."""
    return float(f"{value:.5g}")


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return the data of an SVG path through the points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
