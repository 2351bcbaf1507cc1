"""Put the report together: one HTML file that needs nothing else, and loads nothing from anywhere."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastclip.train.config import Config
from fastclip.train.evaluate import Embedded, Result
from fastclip.train.report.charts import line_chart
from fastclip.train.report.examples import data_address, found_by_caption, read_from_pictures, showable, some
from fastclip.train.report.mistakes import mistakes
from fastclip.train.report.style import CSS, SCRIPT
from fastclip.train.report.summary import Summary, figures, notes, percent

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(
    summary: Summary,
    lines: Sequence[Mapping[str, Any]],
    tests: Sequence[Embedded],
    config: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str],
    drawn: Mapping[str, Path],
) -> str:
    """Return the report.

    Args:
        summary: results, control, facts, what was skipped.
        lines: of the metrics file.
        tests: the held-out tests as the model sees them; without any there are no examples.
        config: Config.to_dict() of the run.
        environment: fact by name.
        drawn: further pictures by title.
    """
    sections = [
        _head(summary),
        _tiles(summary, lines),
        _curves(lines),
        _table(summary),
        _examples(tests),
        _mistakes(tests),
        _drawn(drawn),
        _skipped(summary),
        _settings(config),
        _environment(environment),
    ]
    if summary.credits:
        sections.append(f'<div class="credits">{html.escape(summary.credits)}</div>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(summary.title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(sections)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _head(summary: Summary) -> str:
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in summary.facts)
    alert = (
        f'<div class="alert"><b>Ended early.</b> {html.escape(summary.failure)}</div>'
        if summary.failure
        else ""
    )
    return (
        '<button id="theme">light / dark</button><div class="eyebrow">fastclip training report</div>'
        f'<h1>{html.escape(summary.title)}</h1><ul class="facts">{facts}</ul>{alert}'
    )


def _tiles(summary: Summary, lines: Sequence[Mapping[str, Any]]) -> str:
    tiles = []
    for number, result in enumerate(summary.results):
        if result.headline is None or not (found := figures(result)):
            continue
        key, label = found[0]
        beside = f"chance {percent(result.chance[key])}"
        if summary.control is not None and number < len(summary.control):
            beside += f", control {percent(summary.control[number].metrics[key])}"
        tiles.append((percent(result.metrics[key]), f"{result.name}: {label}", beside))
    last = next((line for line in reversed(lines) if line.get("train/loss") is not None), None)
    if last is not None:
        tiles.append(
            (f"{last['train/loss']:.3g}", "training loss, nats", f"logit scale {last['train/scale']:.1f}")
        )
        rates = sorted(
            line["train/samples_per_second"] for line in lines if line.get("train/samples_per_second")
        )
        if rates:
            memory = last.get("train/memory_mib")
            beside = f"{memory:,.0f} MiB at the peak" if memory else "median"
            tiles.append((f"{rates[len(rates) // 2]:,.0f}", "pairs per second", beside))
    cells = "".join(
        f'<div class="tile"><b>{value}</b><span>{html.escape(label)}</span><small>{html.escape(beside)}</small></div>'
        for value, label, beside in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    def curve(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in lines if _is_number(line.get(key))]

    recalls = {
        key.removeprefix("val/")
        .replace("/image_to_text_", ", ")
        .replace("image_to_text_", "")
        .replace("_", " "): key
        for key in sorted({key for line in lines for key in line if key.endswith("image_to_text_R@1")})
    }
    panels: list[tuple[str, str, dict[str, str], bool]] = [
        ("Loss", "nats", {"loss": "train/loss"}, True),
        ("Held-out recall", "picture → caption", recalls, True),
        ("Logit scale", "multiplier", {"scale": "train/scale"}, False),
        ("Learning rate", "", {"lr": "train/lr"}, True),
        ("A step", "seconds", {"whole": "train/batch_time", "waiting for data": "train/data_time"}, True),
        ("Gradient norm", "before clipping", {"norm": "train/gradient_norm"}, True),
    ]
    charts = []
    for title, unit, keys, from_zero in panels:
        curves = {label: curve(key) for label, key in list(keys.items())[:6]}
        curves = {label: points for label, points in curves.items() if points}
        if curves:
            charts.append(line_chart(title, unit, curves, from_zero=from_zero))
    if not charts:
        return ""
    return f'<h2>Curves</h2><p class="say">Over the steps of the run.</p><div class="charts">{"".join(charts)}</div>'


def _table(summary: Summary) -> str:
    if not summary.results:
        return "<h2>Held-out figures</h2><p>No pairs were held out, so there are no figures to report.</p>"
    columns = ["figure", "", "this model", "chance"]
    if summary.control is not None:
        columns.append("control")
    head = "".join(f"<th{' class=n' if i > 1 else ''}>{column}</th>" for i, column in enumerate(columns))
    body = []
    for number, result in enumerate(summary.results):
        control = None
        if summary.control is not None and number < len(summary.control):
            control = summary.control[number]
        kind = "" if result.headline else ', <span class="soft">a diagnostic</span>'
        size = f"{result.pictures:,} pictures, {result.captions:,} {result.answers}"
        name = f"{html.escape(result.name)} <small>{size}</small>{kind}"
        body.append(f'<tr class="test"><td colspan="{len(columns)}">{name}</td></tr>')
        for place, (key, label) in enumerate(figures(result)):
            look = ' class="head"' if place == 0 and result.headline else ""
            body.append(f"<tr{look}>{_figure_cells(result, control, key, label, len(columns) - 2)}</tr>")
    said = "".join(f'<p class="say">{html.escape(note)}</p>' for note in notes(summary))
    marks = "Bars end at this model; the plain mark is chance" + (
        ", the orange one the control." if summary.control else "."
    )
    return (
        f'<h2>Held-out figures</h2><p class="say">Pairs the model never saw. {marks}</p>'
        f'<div class="card scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>{said}'
    )


def _figure_cells(result: Result, control: Result | None, key: str, label: str, columns: int) -> str:
    value, chance = result.metrics[key], result.chance[key]
    marks = f'<i style="width:{100 * value:.2f}%"></i><u style="left:{100 * chance:.2f}%"></u>'
    cells = [percent(value), percent(chance)]
    if control is not None:
        marks += f'<u class="control" style="left:{100 * control.metrics[key]:.2f}%"></u>'
        cells.append(percent(control.metrics[key]))
    cells += [""] * (columns - len(cells))
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f'<td>{html.escape(label)}</td><td class="bar"><div class="track">{marks}</div></td>{numbers}'


def _examples(tests: Sequence[Embedded]) -> str:
    shown = showable(tests)[:2]
    if not shown:
        return ""
    found = "".join(found_by_caption(one) for one in shown)
    read = "".join(
        read_from_pictures(
            one, some(torch.arange(len(one.test)), 4, seed=0), f"{one.test.name}: captions by picture"
        )
        for one in shown
    )
    return (
        '<h2>Examples</h2><p class="say">Drawn at random from pictures the model never saw. Right ones are framed or '
        f'green.</p><div class="rows">{found}</div><div class="rows">{read}</div>'
    )


def _drawn(drawn: Mapping[str, Path]) -> str:
    parts = []
    for title, path in drawn.items():
        if path.is_file():
            with Image.open(path) as image:
                sheet = image.convert("RGB")
            sheet.thumbnail((1600, 1600))
            source = data_address(np.asarray(sheet), quality=80)
            name = html.escape(title, quote=True)
            parts.append(
                f'<figure class="card drawn"><img alt="{name}" title="{name}" src="{source}"></figure>'
            )
    return f"<h2>The space</h2>{''.join(parts)}" if parts else ""


def _mistakes(tests: Sequence[Embedded]) -> str:
    if not tests:
        return ""
    said = "From picture to caption, over every held-out test."
    return f'<h2>Mistakes by kind</h2><p class="say">{said}</p>{mistakes(tests)}'


def _skipped(summary: Summary) -> str:
    reasons = dict(summary.skipped)
    if not reasons and not summary.skipped_steps:
        return (
            '<h2>Skipped</h2><p class="say">Nothing: every pair could be read, and every step was finite.</p>'
        )
    parts = ["<h2>Skipped</h2>"]
    if summary.skipped_steps:
        parts.append(f"<p>{summary.skipped_steps:,} steps whose loss or gradient was not finite.</p>")
    if reasons:
        rows = "".join(
            f'<tr><td>{html.escape(reason)}</td><td class="n">{count:,}</td></tr>'
            for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
        )
        total = sum(reasons.values())
        parts.append(
            f"<p>{total:,} pairs that could not be read; others took their places.</p>"
            f'<div class="card scroll"><table><tr><th>reason</th><th class="n">pairs</th></tr>{rows}</table></div>'
        )
    if files := sorted(summary.skipped_files.items()):
        listed = "".join(
            f"<tr><td><code>{html.escape(file)}</code></td><td>{html.escape(reason)}</td></tr>"
            for file, reason in files[:50]
        )
        more = f"<p class=say>and {len(files) - 50:,} more, in skipped.txt</p>" if len(files) > 50 else ""
        parts.append(
            f'<details><summary>Which</summary><div class="scroll"><table>{listed}</table></div>{more}</details>'
        )
    return "".join(parts)


def _settings(config: Mapping[str, Mapping[str, Any]]) -> str:
    defaults: dict[str, Any] = dataclasses.asdict(Config())
    cards = []
    for concern, settings in config.items():
        rows = []
        for key, value in settings.items():
            changed = value != defaults.get(concern, {}).get(key)
            shown = (
                f'<code class="set">{_setting(value)}</code>'
                if changed
                else f"<code>{_setting(value)}</code>"
            )
            rows.append(f"<tr><td>--{html.escape(key.replace('_', '-'))}</td><td>{shown}</td></tr>")
        cards.append(f'<div class="card"><h3>{html.escape(concern)}</h3><table>{"".join(rows)}</table></div>')
    if not cards:
        return ""
    return (
        '<h2>Settings</h2><p class="say">What differs from the defaults is coloured.</p>'
        f'<div class="columns">{"".join(cards)}</div>'
    )


def _setting(value: Any) -> str:
    return "—" if value is None else html.escape(str(value))


def _environment(environment: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(value)}</code></td></tr>"
        for name, value in environment.items()
    )
    return f'<h2>Environment</h2><div class="card scroll"><table>{rows}</table></div>' if rows else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
