"""Show what the model finds: pictures by caption, captions by picture; examples are drawn at random."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.train.evaluate import Embedded, labels_of
from fastclip.train.pictures import portraits

SIDE = 144  # pixels of a thumbnail: twice what it takes on the page


def showable(tests: Sequence[Embedded]) -> list[Embedded]:
    """Return the tests that have pictures for people to look at, those with a headline first."""
    seen = [
        one
        for one in tests
        if len(one.test) and (one.test.portraits is not None or one.test.images.ndim == 4)
    ]
    return sorted(seen, key=lambda one: one.test.headline is None)


def found_by_caption(embedded: Embedded, *, rows: int = 6, nearest: int = 5, seed: int = 0) -> str:
    """Return a card: captions drawn at random and their nearest pictures, the right ones framed."""
    test = embedded.test
    image_labels, text_labels = labels_of(test)
    asked = some(torch.isin(text_labels, image_labels).nonzero().squeeze(1), rows, seed)
    z = (embedded.texts[asked] @ embedded.images.T).cpu()
    order = z.argsort(dim=1, descending=True, stable=True)
    right = image_labels[order] == text_labels[asked][:, None]
    nearest = min(nearest, order.shape[1])
    drawn = iter(thumbnails(embedded, order[:, :nearest].reshape(-1)))
    lines = []
    for row, caption in enumerate(asked.tolist()):
        strip = "".join(
            picture(
                next(drawn), "right" if right[row, place] else "", f"cosine {z[row, order[row, place]]:.2f}"
            )
            for place in range(nearest)
        )
        rank = int(right[row].int().argmax()) + 1
        place_of_right = "" if rank <= nearest else f"<small>the right picture is number {rank:,}</small>"
        text = html.escape(test.gallery[caption])
        lines.append(
            f'<div class="found"><div>{text}{place_of_right}</div><div class="strip">{strip}</div></div>'
        )
    title = f"{html.escape(test.name)}: the {nearest} nearest of {len(test):,} pictures"
    return f'<div class="card"><h3>{title}</h3>{"".join(lines)}</div>'


def read_from_pictures(
    embedded: Embedded, chosen: Tensor, title: str, *, nearest: int = 3, ranks: Tensor | None = None
) -> str:
    """Return a card: pictures and the captions nearest to them, the right ones marked.

    Args:
        embedded: a held-out test.
        chosen: int64, which of its pictures.
        title: of the card.
        nearest: how many captions.
        ranks: int64 (Q,), where the right caption stands; said beside each picture if given.
    """
    test = embedded.test
    image_labels, text_labels = labels_of(test)
    z = (embedded.images[chosen] @ embedded.texts.T).cpu()
    values, order = z.topk(min(nearest, z.shape[1]), dim=1)
    lines = []
    for row, (index, source) in enumerate(zip(chosen.tolist(), thumbnails(embedded, chosen), strict=True)):
        items = "".join(
            f"<li{mark}>{html.escape(test.gallery[caption])} <small>{value:.2f}</small></li>"
            for caption, value, mark in zip(
                order[row].tolist(),
                values[row].tolist(),
                [' class="right"' if same else "" for same in text_labels[order[row]] == image_labels[index]],
                strict=True,
            )
        )
        said = ""
        if ranks is not None:
            own = html.escape(test.gallery[int(test.target[index])])
            said = f"{own} <small>is number {int(ranks[index]):,}; the nearest are</small>"
        lines.append(f'<div class="guess">{picture(source, "big")}<div>{said}<ol>{items}</ol></div></div>')
    return f'<div class="card"><h3>{html.escape(title)}</h3>{"".join(lines)}</div>'


def picture(source: str, look: str = "", title: str = "") -> str:
    """Return the tag of a thumbnail."""
    return f'<img class="pic {look}" src="{source}" alt="" title="{html.escape(title, quote=True)}">'


def thumbnails(embedded: Embedded, indices: Tensor) -> list[str]:
    """Return pictures of a test as data: addresses."""
    if not len(indices):
        return []
    return [data_address(pixels) for pixels in portraits(embedded.test, indices.tolist(), SIDE)]


def data_address(pixels: object, quality: int = 82) -> str:
    """Return a picture, uint8 (H, W, 3) as numpy, as a data: address: WebP, or JPEG where Pillow lacks that."""
    from PIL import Image, features

    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)  # type: ignore[arg-type]
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def some(candidates: Tensor, count: int, seed: int) -> Tensor:
    """Return up to `count` of the candidates at random."""
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return candidates[order[:count]]
