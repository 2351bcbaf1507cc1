"""Find the pictures or captions nearest to a text or a picture, in a folder of embeddings."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.data.picture import UnreadableError, decode
from fastclip.search.sheet import Hit, Query, draw_contact_sheet
from fastclip.space import Encoder, compose, parse_sum
from fastclip.space.command import AveragedFlag, CommandError, EmbeddingsArgument, open_encoder, write_json
from fastclip.space.embeddings import Embeddings, Row

SIDE = 128  # pixels of a picture on the sheet


@dataclass(frozen=True)
class Options:
    """Search a folder of embeddings, written by fastclip.embed or clip-retrieval, by texts and pictures."""

    embeddings: EmbeddingsArgument
    """The folder."""
    text: tuple[str, ...] = ()
    """Texts to search for. "a cat + a hat - a dog" (signs with spaces around them) is a sum of meanings."""
    image: tuple[str, ...] = ()
    """Picture files to search for."""
    model: str | None = None
    """What encodes the queries. Default: what the folder was embedded with, the same weights of it."""
    side: Literal["images", "texts"] = "images"
    """What is searched: pictures, or captions."""
    k: int = 12
    """Answers for each query."""
    sheet: str | None = None
    """Contact sheet to draw, a PNG."""
    json: str | None = None
    """File to write the answers to as JSON; - prints them in place of the table."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    averaged: AveragedFlag = False


def run(options: Options) -> list[Query]:
    """Search; return the queries with their answers.

    Raises:
        CommandError: no query, no model, or a picture that cannot be read.
    """
    if not options.text and not options.image:
        raise CommandError("nothing to search for: give --text or --image")
    if options.k < 1:
        raise CommandError(f"--k must be at least 1, got {options.k}")
    store = Embeddings(Path(options.embeddings))
    path, averaged = options.model, options.averaged
    if path is None:
        if store.plan is None:
            raise CommandError(f"{options.embeddings} does not say what made it; name the model with --model")
        if averaged:
            raise CommandError(
                "--averaged goes with --model; without it, queries take the weights of the folder"
            )
        path, averaged = store.plan.model, store.plan.averaged
    encoder = open_encoder(path, options.device, averaged=averaged)
    features = torch.cat([*(_text(encoder, text) for text in options.text), *_images(encoder, options.image)])
    width = store.width
    if features.shape[1] != width:
        raise CommandError(
            f"{path} has points of {features.shape[1]} numbers, {options.embeddings} of {width}; "
            "--model must be what the folder was embedded with"
        )
    cosines, rows = store.search(features, options.k, options.side)
    queries = [
        Query(title, [Hit(cosine, row) for cosine, row in zip(near, answers, strict=True)])
        for title, near, answers in zip((*options.text, *options.image), cosines.tolist(), rows, strict=True)
    ]
    if options.json == "-":
        print(json.dumps(_plain(queries), indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines(queries)))
    if options.json not in (None, "-"):
        write_json(Path(options.json), _plain(queries))
    if options.sheet:
        pictures = load_pictures(store, [hit.row for query in queries for hit in query.hits])
        draw_contact_sheet(queries, pictures, Path(options.sheet))
        print(f"contact sheet: {options.sheet}")
    return queries


def lines(queries: list[Query]) -> list[str]:
    """Return the answers as a table for a terminal."""
    out = []
    for query in queries:
        out.append(query.title)
        for rank, hit in enumerate(query.hits, 1):
            caption = (
                f"  {textwrap.shorten(hit.row.caption, 80, placeholder=' …')}" if hit.row.caption else ""
            )
            out.append(f"  {rank:3}  {hit.cosine:6.3f}  {hit.row.image_path}{caption}")
    return out


def load_pictures(store: Embeddings, rows: list[Row]) -> dict[Row, Tensor]:
    """Return the pictures of rows, uint8 (3, S, S), of those that can still be read: from files, or the source."""
    found: dict[Row, Tensor] = {}
    for row in rows:
        try:
            found[row] = torch.from_numpy(decode(Path(row.image_path), SIDE).copy())
        except (UnreadableError, OSError, ValueError):
            continue  # a member of an archive, a row of a table, or gone
    missing = [row for row in rows if row not in found and row.index is not None]
    if missing and store.plan is not None:
        found |= _from_source(store, missing)
    return found


def _from_source(store: Embeddings, rows: list[Row]) -> dict[Row, Tensor]:
    from fastclip.data import open_source
    from fastclip.data.opening import DatasetType

    plan = store.plan
    if plan is None or plan.dataset_type == "pictures":
        return {}
    try:
        source = open_source(
            plan.data,
            SIDE,
            dataset_type=cast(DatasetType, plan.dataset_type),
            held_out_share=0.0,
            **plan.columns,  # type: ignore[arg-type]
        )
        pairs = source.fetch([row.index or 0 for row in rows], seed=0, epoch=0, augment=False)
    except (OSError, ValueError, IndexError):
        return {}  # moved or changed since; the sheet shows captions in place of pictures
    by_index = dict(zip(pairs.indices.tolist(), pairs.images, strict=True))
    return {row: by_index[row.index] for row in rows if row.index in by_index}


def _text(encoder: Encoder, text: str) -> Tensor:
    terms = parse_sum(text)
    points = encoder.texts([term for _, term in terms])
    plus, minus = (
        [point for (s, _), point in zip(terms, points, strict=True) if s == sign] for sign in (1, -1)
    )
    return F.normalize(compose(plus, minus)[None], dim=-1)


def _images(encoder: Encoder, files: tuple[str, ...]) -> list[Tensor]:
    side = encoder.model.config.vision.image_size
    pictures = []
    for file in files:
        try:
            pictures.append(torch.from_numpy(decode(Path(file), side).copy()))
        except UnreadableError as error:
            raise CommandError(f"--image {file}: {error}") from error
    return [encoder.images(torch.stack(pictures))] if pictures else []


def _plain(queries: list[Query]) -> list[dict[str, Any]]:
    return [
        {
            "query": query.title,
            "answers": [
                {"rank": rank, "cosine": hit.cosine, "image_path": hit.row.image_path, "caption": hit.row.caption,
                 "index": hit.row.index}
                for rank, hit in enumerate(query.hits, 1)
            ],
        }
        for query in queries
    ]  # fmt: skip
