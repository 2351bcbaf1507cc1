"""Sort a model's mistakes by kind, and show some of each test's."""

from __future__ import annotations

import html
from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.retrieval import retrieval_ranks
from fastclip.train.evaluate import Embedded, labels_of
from fastclip.train.report.examples import read_from_pictures, showable, some
from fastclip.train.report.summary import percent

#: Ranks of the right caption that are counted together: label, highest rank.
BUCKETS = (("first", 1), ("2 to 5", 5), ("6 to 10", 10), ("11 to 100", 100), ("beyond 100", None))


def mistakes(tests: Sequence[Embedded], *, examples: int = 4, seed: int = 1) -> str:
    """Return the section's HTML: bars of kinds for every test, and examples of what came first instead."""
    ranks = {id(one): caption_ranks(one) for one in tests}
    bars = "".join(_bars(one, ranks[id(one)]) for one in tests)
    cards = []
    for one in showable(tests):
        wrong = (ranks[id(one)] > 1).nonzero().squeeze(1)
        if len(wrong):
            title = f"{one.test.name}: {min(examples, len(wrong))} of {len(wrong):,} mistakes, at random"
            chosen = some(wrong, examples, seed)
            cards.append(read_from_pictures(one, chosen, title, ranks=ranks[id(one)]))
    return f'<div class="card bars">{bars}</div><div class="rows">{"".join(cards)}</div>'


def caption_ranks(embedded: Embedded) -> Tensor:
    """Return where the best right caption of each picture stands, int64 (Q,), on the CPU."""
    device = embedded.images.device
    image_labels, text_labels = (labels.to(device) for labels in labels_of(embedded.test))
    return retrieval_ranks(embedded.images, embedded.texts, (image_labels, text_labels)).image_to_text.cpu()


def rank_kinds(ranks: Tensor) -> list[tuple[str, int]]:
    """Return how many pictures have their right caption first, second to fifth, …"""
    counts, below = [], 0
    for label, highest in BUCKETS:
        up_to = len(ranks) if highest is None else int((ranks <= highest).sum())
        counts.append((label, up_to - below))
        below = up_to
    return counts


def choice_kinds(embedded: Embedded, ranks: Tensor) -> list[tuple[str, int]]:
    """Return of a test with a forced choice how many pictures are right, of the wrong variant, of the wrong base."""
    test = embedded.test
    if test.groups is None:
        return []
    nearest = torch.cat([(block @ embedded.texts.T).argmax(1) for block in embedded.images.split(1024)]).cpu()
    right = ranks == 1
    variant = (test.groups == nearest[:, None]).any(1) & ~right
    return [
        ("right", int(right.sum())),
        (f"right base, wrong {test.group_name.split(' of ')[0]}", int(variant.sum())),
        ("another base", int((~right & ~variant).sum())),
    ]


def _bars(embedded: Embedded, ranks: Tensor) -> str:
    parts = [f"<h3>{html.escape(embedded.test.name)}</h3>"]
    parts.append(_bar("where the right caption stands", rank_kinds(ranks), (0, 1, 2, 3, 4)))
    if kinds := choice_kinds(embedded, ranks):
        parts.append(_bar("what the nearest caption gets wrong", kinds, (0, 3, 4)))
    return "".join(parts)


def _bar(title: str, kinds: Sequence[tuple[str, int]], colours: Sequence[int]) -> str:
    total = max(1, sum(count for _, count in kinds))
    pieces = "".join(
        f'<i class="k{colour}" style="width:{100 * count / total:.2f}%" title="{html.escape(label)}: {count:,}"></i>'
        for (label, count), colour in zip(kinds, colours, strict=True)
        if count
    )
    legend = "".join(
        f'<span><i class="swatch k{colour}"></i>{html.escape(label)} {percent(count / total)}</span>'
        for (label, count), colour in zip(kinds, colours, strict=True)
    )
    return f'<small>{html.escape(title)}</small><div class="kinds">{pieces}</div><div class="legend">{legend}</div>'
