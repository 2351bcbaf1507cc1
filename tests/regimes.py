"""Where losses go wrong, as data: named cases that every backend, objective and dtype is put through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.acceptance import Judge
from tests.formulas import Case

INITIAL_SCALE = 1 / 0.07  # where CLIP's training starts
FINAL_SCALE = 100.0  # and where its clamp stops it


def unit(rows: int, width: int, seed: int) -> Tensor:
    """Return random unit rows, float64."""
    return F.normalize(normal(rows, width, seed), dim=1)


def normal(rows: int, width: int, seed: int) -> Tensor:
    """Return standard normal numbers, float64."""
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random(m: int, n: int, width: int, scale: float = INITIAL_SCALE, **options: object) -> Case:
    """Features of an untrained model: unit rows without any relation."""
    return Case(unit(m, width, 1), unit(n, width, 2), scale, **options)  # type: ignore[arg-type]


def trained(margin: float, noise: float = 0.05, rows: int = 37, scale: float = FINAL_SCALE) -> Case:
    """Features of a model that fits its batch: positives' logits lead by about `margin` nats."""
    shared = margin / scale  # of a row's squared length, what is its own
    own = unit(rows, 48, 3)
    common = unit(1, 48, 4).expand(rows, -1)
    x = F.normalize((1 - shared) ** 0.5 * common + shared**0.5 * own, dim=1)
    y = F.normalize(x + noise * shared**0.5 * unit(rows, 48, 5), dim=1)
    return Case(x, y, scale)


def cosines(mean: float, scale: float = FINAL_SCALE) -> Case:
    """All cosines close to `mean`."""
    direction = unit(1, 96, 6)
    x = F.normalize(direction + 0.1 * unit(37, 96, 7), dim=1)
    y = F.normalize(mean * direction + (1 - mean**2) ** 0.5 * unit(37, 96, 8), dim=1)
    return Case(x, y, scale)


def with_rows(features: Tensor, rows: dict[int, float]) -> Tensor:
    """Multiply some rows by a number."""
    features = features.clone()
    for row, factor in rows.items():
        features[row] *= factor
    return features


def _zero_vectors(normalize: bool) -> Case:
    case = random(20, 20, 48, normalize=normalize)
    return replace(case, x=with_rows(case.x, {0: 0, 7: 0}), y=with_rows(case.y, {7: 0, 11: 0}))


def _clusters() -> Case:
    # Half of the rows point one way, half the other: logits from -100 to 100 within one cell of every kernel.
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(19)[:, None]
    x = F.normalize(sign * unit(1, 48, 9) + 0.3 * unit(38, 48, 10), dim=1)
    y = F.normalize(sign * unit(1, 48, 9) + 0.3 * unit(38, 48, 11), dim=1)
    return Case(x, y, FINAL_SCALE)


def _apart() -> Case:
    # One row 79 nats below all others: as far as the band reaches in which the C++ treats rows and columns alike.
    direction = unit(1, 96, 6)
    x = F.normalize(direction + 1e-3 * unit(37, 96, 7), dim=1)
    y = F.normalize(0.395 * direction + (1 - 0.395**2) ** 0.5 * unit(37, 96, 8), dim=1)
    y = y + (0.395 - y @ direction.T) * direction  # now at exactly this cosine
    return Case(with_rows(x, {0: -1}), y, FINAL_SCALE)


def _far_columns() -> Case:
    # Row 0 lies at -39.5 in 1024 columns where the others lie at 39.5: one cell of the C++ with one shift, far above
    # row 0's own logits. In the last columns it lies at -52, alone: they see no gradient but its.
    first, second = torch.eye(2, 96, dtype=torch.float64)

    def columns(count: int, a: float, b: float, seed: int) -> Tensor:
        rest = unit(count, 94, seed) * (1 - a**2 - b**2) ** 0.5
        return a * first + b * second + torch.cat([rest.new_zeros(count, 2), rest], dim=1)

    x = F.normalize(first + 1e-3 * unit(37, 96, 20), dim=1)
    x[0] = second
    y = torch.cat(
        [columns(1024, 0.395, -0.395, 21), columns(37, 0.5, -0.4, 22), columns(26, -0.6, -0.52, 23)]
    )
    return Case(x, y, FINAL_SCALE, diagonal=1024)


def _labels(m: int, n: int, kinds: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(12)
    return tuple(torch.randint(-2, kinds, (k,), generator=generator) for k in (m, n))  # type: ignore[return-value]


def _all_equal() -> Case:
    row = unit(1, 48, 13)
    return Case(row.repeat(20, 1), row.repeat(20, 1), INITIAL_SCALE)


def _repeated_texts() -> Case:
    return Case(unit(30, 48, 14), unit(10, 48, 15).repeat(3, 1), 20.0)


def _norms(case: Case, low: float, high: float) -> Case:
    x, y = (
        features * torch.logspace(low, high, len(features), dtype=torch.float64)[:, None]
        for features in (case.x, case.y)
    )
    return replace(case, x=x, y=y, normalize=True)


#: Cases small enough for Triton's interpreter.
REGIMES: dict[str, Callable[[], Case]] = {
    # Shapes.
    "one pair": lambda: random(1, 1, 48),
    "one row": lambda: random(1, 70, 48, diagonal=41),
    "one row, one feature": lambda: random(1, 3, 1, diagonal=1),
    "two pairs": lambda: random(2, 2, 8),
    "D = 1": lambda: Case(normal(20, 1, 16), normal(20, 1, 17), 2.0),
    "D = 8": lambda: random(33, 33, 8),
    "D = 48": lambda: random(33, 33, 48),
    "D = 100": lambda: random(65, 65, 100),
    "D = 768": lambda: random(17, 17, 768),
    "D = 1152": lambda: random(5, 5, 1152),
    "M < N": lambda: random(37, 131, 48),
    "M < N, positives last": lambda: random(37, 131, 48, diagonal=94),
    "M < N, positives inside": lambda: random(70, 150, 24, diagonal=33),
    "M < N, scale 100": lambda: random(37, 70, 4, diagonal=33, scale=FINAL_SCALE),
    # Scales and norms.
    "scale 1e-3": lambda: random(33, 33, 48, scale=1e-3),
    "scale 1": lambda: random(33, 33, 48, scale=1.0),
    "scale 100": lambda: random(37, 37, 48, scale=FINAL_SCALE),
    "scale 1e4": lambda: random(37, 37, 48, scale=1e4),
    "not normalised": lambda: Case(normal(33, 48, 18), normal(33, 48, 19), 0.5),
    "normalised here": lambda: Case(normal(33, 48, 18), normal(33, 48, 19), INITIAL_SCALE, normalize=True),
    "norms 1e4": lambda: replace(
        random(33, 33, 48, normalize=True), x=1e4 * unit(33, 48, 1), y=1e4 * unit(33, 48, 2)
    ),
    "norms 1e-2 to 1e3": lambda: _norms(random(33, 33, 48), -2, 3),
    # Positions of training.
    "fits, margin 5": lambda: trained(5),
    "fits, margin 12": lambda: trained(12),
    "fits, margin 20": lambda: trained(20),
    "fits, margin 80": lambda: trained(80),
    "aligned": lambda: replace(trained(20), y=trained(20).x),
    "cosines below 0.1": lambda: cosines(0.0),
    "cosines about -0.9": lambda: cosines(-0.9),
    "two clusters": _clusters,
    "one row apart": _apart,
    # Degenerate features.
    "all equal": _all_equal,
    "zero vectors": lambda: _zero_vectors(False),
    "zero vectors normalised": lambda: _zero_vectors(True),
    "repeated texts": _repeated_texts,
    # Options.
    "bias": lambda: random(33, 33, 48, bias=-10.0),
    "labels": lambda: random(37, 37, 48, labels=_labels(37, 37, 12)),
    "labels, M < N": lambda: random(30, 71, 48, labels=_labels(30, 71, 9), diagonal=11),
    "one label": lambda: random(9, 9, 48, labels=_labels(9, 9, -1)),
    "label smoothing": lambda: random(33, 45, 48, label_smoothing=0.1, diagonal=5),
    "label smoothing, labels": lambda: random(
        30, 44, 48, label_smoothing=0.2, labels=_labels(30, 44, 7), diagonal=3, normalize=True
    ),
}

#: Cases of several blocks and cells.
LARGE_REGIMES: dict[str, Callable[[], Case]] = {
    "far columns": _far_columns,
    "blocks": lambda: random(1100, 2100, 8, diagonal=900),
    "blocks, scale 100": lambda: random(1100, 2100, 8, diagonal=1000, scale=FINAL_SCALE),
    "blocks, labels": lambda: random(1050, 2080, 8, diagonal=1030, labels=_labels(1050, 2080, 60)),
}


#: Where the other objectives differ from clip and siglip in more than what these show.
OTHERS: tuple[str, ...] = (
    "one row",
    "two pairs",
    "D = 100",
    "M < N, positives inside",
    "scale 1e4",
    "norms 1e-2 to 1e3",
)
OTHERS += (
    "fits, margin 5",
    "two clusters",
    "all equal",
    "zero vectors normalised",
    "labels, M < N",
    "repeated texts",
)

#: (objective, name) of every small and of every large case.
CASES = [
    *(("clip", name) for name in REGIMES),
    *(("siglip", name) for name in REGIMES if "smoothing" not in name),
    *(("info_nce", name) for name in (*OTHERS, "label smoothing", "label smoothing, labels")),
    *((objective, name) for objective in ("clip_multi", "siglip_multi") for name in OTHERS),
]
LARGE_CASES = [
    *((objective, name) for objective in ("clip", "siglip") for name in LARGE_REGIMES),
    *((objective, "blocks, labels") for objective in ("info_nce", "clip_multi", "siglip_multi")),
]


@cache
def make(objective: str, name: str) -> Case:
    """Return a regime's case for an objective, with the options that the objective needs."""
    case = replace((REGIMES | LARGE_REGIMES)[name](), objective=objective)
    if objective.startswith("siglip") and case.bias is None:
        case = replace(case, bias=_bias(case))
    if objective.endswith("_multi"):
        # In twos, unless the regime has labels of its own.
        m, n, first = len(case.x), len(case.y), case.diagonal
        labels = case.labels or (torch.arange(m) // 2, (torch.arange(n) - first) // 2)
        case = replace(case, diagonal=0, labels=labels)
    return case


def _bias(case: Case) -> float:
    """Return SigLIP's initial bias, or once the scale has grown the one halfway between positives and negatives."""
    if case.scale < FINAL_SCALE:
        return -10.0
    s = case.x @ case.y.T
    return -case.scale * (s.diagonal(case.diagonal).mean() + s.mean()).item() / 2


@cache
def judge(objective: str, name: str, dtype: torch.dtype) -> Judge:
    """Return the judge of a case (made once per process)."""
    return Judge.of(make(objective, name), dtype)
