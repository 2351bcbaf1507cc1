"""The explorer from end to end: load, encode, measure, lay out, write the page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastclip.data import open_source
from fastclip.data.emoji import EmojiSource
from fastclip.explore import emoji, figures, scenes
from fastclip.explore.emoji_figures import emoji_figures
from fastclip.explore.figures import Figure
from fastclip.explore.gallery import Gallery, held_out_gallery
from fastclip.explore.layout import lay_out, thumbnails
from fastclip.explore.page import Findings, places_shown, render_page
from fastclip.space import TEMPLATES, Encoder, parse_sum
from fastclip.space.command import AveragedFlag, CommandError, ModelArgument, open_model, write_json
from fastclip.train import checkpoint
from fastclip.train.build import SPLIT_SEED, build_source
from fastclip.train.config import Config, ConfigError, RunConfig


@dataclass(frozen=True)
class Options:
    """Explore the space of a trained model: one HTML page with a map, sums and ways, and figures beside chance."""

    model: ModelArgument
    """A run of fastclip.train, or any other weights that fastclip.models.load reads."""
    data: str | None = None
    """Pairs to explore with, as `--train-data`; their held-out part is shown. Default: those the run trained on."""
    output: str | None = None
    """The page; its figures go beside it as .json. Default: space.html in the run's folder."""
    compose: tuple[str, ...] = ()
    """Sums to show, such as "a cat + a hat - a dog"; signs have spaces around them."""
    interpolate: tuple[str, ...] = ()
    """Ways to show, such as "a cat | a dog"."""
    templates: str = "drawings"
    """Prompt templates of the zero-shot figures, by the name of their set in fastclip.space.TEMPLATES."""
    limit: int = 1000
    """Most pictures on the map."""
    seed: int = 0
    """Seed of what is drawn at random."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    averaged: AveragedFlag = False
    sheet: str | None = None
    """Draw sums and ways as a PNG too."""


def run(options: Options) -> Path:
    """Carry out the exploration; return the page's path.

    Raises:
        CommandError: nothing says which pairs to explore, or an option that cannot work.
    """
    started = time.perf_counter()
    folder = Path(options.model)
    output = (
        Path(options.output) if options.output else (folder if folder.is_dir() else Path()) / "space.html"
    )
    if options.templates not in TEMPLATES:
        raise CommandError(f"--templates must be one of {', '.join(TEMPLATES)}, got {options.templates}")
    user_sums = [_parse_sum(expression) for expression in options.compose]
    user_ways = [_parse_way(expression) for expression in options.interpolate]

    model, _, tokenizer = open_model(options.model, options.device, averaged=options.averaged)
    with one_thread() as workers, ThreadPoolExecutor(1) as pool:
        encoder = Encoder(model, tokenizer, batch_size=64, workers=min(workers, 8))
        gallery = open_gallery(options, model, encoder)
        print(
            f"{gallery.name}: {len(gallery):,} pictures encoded, {int(gallery.unseen.sum()):,} of them unseen"
        )
        layout = pool.submit(lay_out, gallery, limit=options.limit, seed=options.seed)
        numbers = measure(gallery, TEMPLATES[options.templates], options.seed)
        sums, strips, note = choose(gallery, options.seed)
        findings = Findings(
            title=f"The space of {folder.name or options.model}",
            facts=facts(model, gallery),
            figures=numbers,
            headlines=headlines(numbers),
            layout=layout.result(),
            strips=[*(scenes.strip(gallery, first, last) for first, last in user_ways), *strips],
            ways_note=note,
            sums=[*(scenes.evaluate_sum(gallery, terms) for terms in user_sums), *sums],
            heatmap=scenes.heatmap(gallery, seed=options.seed),
            command=f"python -m fastclip.explore {options.model}" + " --averaged" * options.averaged,
        )
    page = render_page(gallery, findings, thumbnails(gallery, places_shown(findings)))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    write_json(output.with_suffix(".json"), plain(options, gallery, findings))
    if options.sheet:
        from fastclip.explore.sheet import draw_sheet

        draw_sheet(gallery, findings, Path(options.sheet))
    print("\n".join(lines(numbers)))
    print(f"{time.perf_counter() - started:.0f} s; page: {output}")
    return output


@contextmanager
def one_thread() -> Iterator[int]:
    """Let torch's operations run on one thread each: on small ones several wait for each other more than they help.

    Yields the number of threads they had: so many operations may run at the same time instead.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def plain(options: Options, gallery: Gallery, findings: Findings) -> dict[str, Any]:
    """Return figures, sums and ways in JSON's types."""

    def said(found: Iterable[scenes.Found]) -> list[dict[str, Any]]:
        return [{"caption": gallery.captions[f.place], "cosine": f.cosine, "right": f.right} for f in found]

    def term(each: scenes.Term) -> str:
        what = each.text if each.place is None else f"picture of {gallery.captions[each.place]}"
        return f"{'+' if each.sign > 0 else '-'} {what}"

    return {
        "model": options.model,
        "averaged": options.averaged,
        "data": gallery.name,
        "seed": options.seed,
        "pictures": len(gallery),
        "unseen": int(gallery.unseen.sum()),
        "figures": [figure.to_dict() for figure in findings.figures],
        "sums": [
            {"terms": [term(each) for each in shown.terms], "found": said(shown.found)}
            for shown in findings.sums
        ],
        "ways": [{"first": w.first, "last": w.last, "found": said(w.found)} for w in findings.strips],
    }


def open_gallery(options: Options, model: Any, encoder: Encoder) -> Gallery:
    """Open the pairs to explore with: emoji with all that their names say, anything else with its held-out part.

    Raises:
        CommandError: nothing says which pairs, or they cannot be opened.
    """
    if options.data is not None:
        source = open_source(options.data, model.config.vision.image_size, seed=SPLIT_SEED)
    else:
        try:
            path = checkpoint.find(RunConfig(resume=options.model))
            source = build_source(Config.from_dict(checkpoint.read_config(path)), model.config)
        except (ConfigError, checkpoint.CheckpointError) as error:
            raise CommandError(
                f"{options.model} does not say which pairs it was trained on, or they are gone ({error}); name pairs "
                "to explore with --data"
            ) from error
    if isinstance(source, EmojiSource):
        return emoji.emoji_gallery(source.image_size, encoder, seed=SPLIT_SEED)
    return held_out_gallery(source, encoder)


def measure(gallery: Gallery, templates: tuple[str, ...], seed: int) -> list[Figure]:
    """Return all figures of a gallery, each with its control."""
    measurements = [
        figures.retrieval_figures,
        lambda each: figures.zero_shot_figures(each, templates),
        figures.middle_figures,
        figures.geometry_figures,
    ]
    if isinstance(gallery, emoji.EmojiGallery):
        measurements[2:2] = [emoji_figures]
    return figures.with_control(gallery, measurements, seed=seed)


def choose(gallery: Gallery, seed: int) -> tuple[list[scenes.Sum], list[scenes.Strip], str]:
    """Return sums and ways to show, and a sentence on how the ways were chosen. The sums are drawn at random."""
    if isinstance(gallery, emoji.EmojiGallery):
        ways = emoji.emoji_strips(gallery)
        note = f"The ends of the first {len(ways)} were chosen, those of the others drawn at random."
        return (
            emoji.emoji_sums(gallery, seed=seed),
            [*ways, *scenes.random_strips(gallery, 4, seed=seed)],
            note,
        )
    ways = scenes.random_strips(gallery, 8, seed=seed)
    return scenes.random_sums(gallery, 6, seed=seed), ways, "Their ends were drawn at random."


def headlines(numbers: list[Figure]) -> list[Figure]:
    """Return the first figure with a headline of every section, for the top of the page."""
    first = {figure.section: figure for figure in reversed(numbers) if figure.headline}
    return [figure for figure in numbers if figure is first.get(figure.section)]


def facts(model: torch.nn.Module, gallery: Gallery) -> list[str]:
    """Return sentences about the model and the pictures."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    unseen = int(gallery.unseen.sum())
    seen = f" and {len(gallery) - unseen:,} that it was" if unseen < len(gallery) else ""
    return [
        f"A model of {weights / 1e6:.1f} million parameters, "
        f"explored with {unseen:,} pictures of {gallery.name} that it was not trained on{seen}."
    ]


def lines(numbers: list[Figure]) -> list[str]:
    """Return the figures as a table for a terminal."""
    rows: list[tuple[str, ...]] = [("", "model", "baseline", "chance", "control")]
    for figure in numbers:
        values = (figure.value, figure.baseline, figure.chance, figure.control)
        rows.append((figure.name, *("" if value is None else figure.text(value) for value in values)))
    widths = [max(len(row[i]) for row in rows) for i in range(1, 5)]
    out = []
    for name, *cells in rows:
        out += [name] if name else []
        out.append("    " + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return out


def _parse_sum(expression: str) -> list[scenes.Term]:
    return [scenes.Term(sign, text) for sign, text in parse_sum(expression)]


def _parse_way(expression: str) -> tuple[str, str]:
    first, bar, last = (part.strip() for part in expression.partition("|"))
    if not bar or not first or not last:
        raise CommandError(f'--interpolate takes "a cat | a dog", got "{expression}"')
    return first, last
