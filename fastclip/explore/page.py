"""Write what was found as one page of HTML that needs nothing else: no server, no network, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from fastclip.explore.figures import Figure
from fastclip.explore.gallery import Gallery
from fastclip.explore.layout import TILE, Layout
from fastclip.explore.scenes import Found, Heatmap, Strip, Sum, Term

Drawn = Callable[..., str]  # (place, further classes) -> an <img>


@dataclass(frozen=True)
class Findings:
    """All that the page shows."""

    title: str
    facts: Sequence[str]  #: sentences about model and data
    figures: Sequence[Figure]
    headlines: Sequence[Figure]  #: of the cards on top
    layout: Layout
    strips: Sequence[Strip]
    ways_note: str  #: how the strips were chosen
    sums: Sequence[Sum]
    heatmap: Heatmap
    command: str  #: what made the page


def places_shown(findings: Findings) -> list[int]:
    """Return the places of the pictures that stand on the page by themselves, outside of the map."""
    found = [f for way in findings.strips for f in way.found] + [
        f for each in findings.sums for f in each.found
    ]
    terms = [term.place for shown in findings.sums for term in shown.terms if term.place is not None]
    return [*(f.place for f in found), *terms, *findings.heatmap.places]


def render_page(gallery: Gallery, findings: Findings, thumbnails: Mapping[int, bytes]) -> str:
    """Return the page.

    Args:
        gallery: the pictures.
        findings: what to show.
        thumbnails: a WebP of every picture in `places_shown`, by place.
    """
    folder = files("fastclip.explore")
    layout = findings.layout
    kinds = sorted({gallery.kinds[place] for place in layout.places})

    def picture(place: int, extra: str = "") -> str:
        caption = escape(gallery.captions[place], quote=True)
        source = _data_url(thumbnails[place])
        return f'<img class="tile{extra}" src="{source}" alt="{caption}" title="{caption}">'

    data = {
        "tile": TILE,
        "columns": layout.columns,
        "plane": [[round(v, 3) for v in point] for point in layout.plane.tolist()],
        "solid": [[round(v, 4) for v in point] for point in layout.solid.tolist()],
        "captions": [gallery.captions[place] for place in layout.places],
        "kinds": kinds,
        "kind": [kinds.index(gallery.kinds[place]) for place in layout.places],
    }
    total = f"{len(gallery):,}"
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(findings.title),
        css=(folder / "page.css").read_text(encoding="utf-8"),
        js=(folder / "page.js").read_text(encoding="utf-8"),
        lead=" ".join(escape(fact) for fact in findings.facts),
        cards="".join(_card(figure) for figure in findings.headlines),
        map_text=f"{len(layout.places):,} pictures the model never saw, close where it finds them alike (t-SNE).",
        legend="".join(_legend(kind, i) for i, kind in enumerate(kinds)) if len(kinds) > 1 else "",
        sums_text=f"Meanings added and taken away, and the five nearest of {total} pictures."
        + (
            " Framed: the right answer."
            if any(s.found and s.found[0].right is not None for s in findings.sums)
            else ""
        ),
        sums="".join(_sum(shown, picture) for shown in findings.sums),
        ways_text="From one caption to another in equal steps on the sphere; at each step, the nearest of "
        f"{total} pictures. {findings.ways_note}",
        ways="".join(_strip(shown, picture) for shown in findings.strips),
        heat_text="Unseen pictures and their captions: cosine × 100, the pair that belongs together is framed.",
        heat=_heat(findings.heatmap, picture),
        numbers_text="Chance: what guessing reaches. Control: the same measurement with the pictures’ features "
        "dealt out to other pictures at random. Equal scores count against the model.",
        numbers=_numbers(findings.figures),
        footer=f"<p>Made by <code>{escape(findings.command)}</code>.</p><p>{escape(gallery.credits or '')}</p>",
        sprite=_data_url(layout.sprite),
        # "<" could end the script element that holds the data.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _data_url(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _card(figure: Figure) -> str:
    beside = [f"{name} {figure.text(value)}" for name, value in _beside(figure)]
    return (
        f'<div class="card"><b>{figure.text(figure.value)}</b><span>{escape(figure.headline)}</span>'
        f"<small>{', '.join(beside)}</small></div>"
    )


def _beside(figure: Figure) -> list[tuple[str, float]]:
    pairs = (("chance", figure.chance), ("control", figure.control))
    return [(name, value) for name, value in pairs if value is not None]


def _numbers(figures: Sequence[Figure]) -> str:
    parts = []
    for section in dict.fromkeys(figure.section for figure in figures):
        rows = "".join(_row(figure) for figure in figures if figure.section == section)
        parts.append(
            f'<h3>{escape(section)}</h3><table class="numbers"><tr><th></th><th></th><th>model</th>'
            f"<th>baseline</th><th>chance</th><th>control</th></tr>{rows}</table>"
        )
    return "".join(parts)


def _row(figure: Figure) -> str:
    note = f"<small>{escape(figure.note)}</small>" if figure.note else ""
    bar = ""
    if figure.share:
        tick = "" if figure.chance is None else f'<u style="left:{100 * figure.chance:.2f}%"></u>'
        bar = f'<div class="bar"><i style="width:{100 * figure.value:.2f}%"></i>{tick}</div>'
    cells = "".join(
        f"<td>{'' if value is None else figure.text(value)}</td>"
        for value in (figure.baseline, figure.chance, figure.control)
    )
    shown = figure.text(figure.value)
    return f'<tr><td>{escape(figure.name)}{note}</td><td>{bar}</td><td class="value">{shown}</td>{cells}</tr>'


def _legend(kind: str, number: int) -> str:
    colour = _KIND_COLOURS[number % len(_KIND_COLOURS)]
    return f'<span class="legend"><i style="background:{colour}"></i>{escape(kind)}</span>'


_KIND_COLOURS = ("#2f6fde", "#d9651a", "#0f9d58", "#a24fd6", "#c9a000", "#d6336c")  # as in page.js


def _strip(shown: Strip, picture: Drawn) -> str:
    pictures = "".join(f"<figure>{picture(found.place)}</figure>" for found in shown.found)
    return f'<div class="strip"><span>{escape(shown.first)}</span>{pictures}<span>{escape(shown.last)}</span></div>'


def _sum(shown: Sum, picture: Drawn) -> str:
    parts = []
    for i, term in enumerate(shown.terms):
        if i or term.sign < 0:
            parts.append(f'<span class="sign">{"+" if term.sign > 0 else "−"}</span>')
        parts.append(_term(term, picture))
    parts.append('<span class="sign">=</span>')
    parts += [_found(found, picture) for found in shown.found]
    return f'<div class="sum">{"".join(parts)}</div>'


def _term(term: Term, picture: Drawn) -> str:
    if term.place is not None:
        return picture(term.place)
    return f'<span class="said{" gone" if term.sign < 0 else ""}">{escape(term.text or "")}</span>'


def _found(found: Found, picture: Drawn) -> str:
    return picture(found.place, " right" if found.right else "")


def _heat(heatmap: Heatmap, picture: Drawn) -> str:
    low, high = min(0.0, float(heatmap.cosines.min())), max(float(heatmap.cosines.max()), 1e-9)
    head = "".join(f"<td>{picture(place)}</td>" for place in heatmap.places)
    rows = []
    for j, caption in enumerate(heatmap.captions):
        cells = []
        for i, cosine in enumerate(heatmap.cosines[:, j].tolist()):
            level = (cosine - low) / (high - low)
            ink = "color:#fff" if level > 0.62 else ""
            own = ' class="own"' if i == j else ""
            cells.append(
                f'<td{own} style="background:color-mix(in srgb, rgb(var(--high)) {100 * level:.0f}%, rgb(var(--low)));'
                f'{ink}">{round(100 * cosine)}</td>'
            )
        rows.append(
            f'<tr><th title="{escape(caption, quote=True)}">{escape(caption)}</th>{"".join(cells)}</tr>'
        )
    return f'<table class="heat"><tr><th></th>{head}</tr>{"".join(rows)}</table>'
