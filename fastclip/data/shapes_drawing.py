"""Draw scenes of two coloured shapes, with antialiased edges, a batch at a time.

A shape is a signed distance (negative inside), so one clamp per pixel gives its antialiased coverage. Every
shape is drawn on a patch just large enough and laid onto its canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (40, 150, 70),
    "blue": (40, 90, 210),
    "purple": (130, 60, 170),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
RELATIONS = (("left of", "right of"), ("above", "below"))

_RADII = np.array([0.12, 0.19], np.float32)  # of the side: small, large
_REACH = 1.1  # of the farthest point of any shape, the star's tip, in radii


@dataclass
class Scenes:
    """Hold B scenes of two objects; column 0 is the left or the upper one."""

    size: np.ndarray  #: int64 (B, 2), index into SIZES
    texture: np.ndarray  #: int64 (B, 2), index into TEXTURES
    colour: np.ndarray  #: int64 (B, 2), index into COLOURS
    shape: np.ndarray  #: int64 (B, 2), index into SHAPES
    relation: np.ndarray  #: int64 (B,), index into RELATIONS

    def __len__(self) -> int:
        return len(self.relation)


def draw(scenes: Scenes, draws: np.ndarray, side: int) -> np.ndarray:
    """Return the pictures of ``scenes``: uint8 ``(B, 3, side, side)``.

    ``draws``, float64 ``(B, 12)`` in [0, 1), moves, turns and sizes the two objects a little (5 each) and
    tints the light grey background (2).
    """
    draws = draws.astype(np.float32)
    ground = 168 + 32 * draws[:, 10:11] + 8 * np.stack([draws[:, 11], 0 * draws[:, 11], 1 - draws[:, 11]], 1)
    canvas = np.empty((len(scenes), 3, side, side), np.float32)
    canvas[:] = ground[:, :, None, None]
    for which in (0, 1):
        jitter = 2 * draws[:, 5 * which : 5 * which + 5] - 1
        along = 0.26 + 0.48 * which + 0.03 * jitter[:, 0]
        across = 0.5 + 0.16 * jitter[:, 1]
        beside = scenes.relation == 0
        things = _Things(
            shape=scenes.shape[:, which],
            texture=scenes.texture[:, which],
            ink=np.array(list(COLOURS.values()), np.float32)[scenes.colour[:, which]],
            centre=np.stack([np.where(beside, along, across), np.where(beside, across, along)], 1) * side,
            radius=_RADII[scenes.size[:, which]] * (1 + 0.08 * jitter[:, 2]) * side,
            angle=0.2 * jitter[:, 3],
            phase=0.5 * jitter[:, 4],
        )
        for size in range(len(SIZES)):  # one size at a time: small things need small patches only
            rows = np.flatnonzero(scenes.size[:, which] == size)
            patch = int(2 * _REACH * 1.08 * _RADII[size] * side) + 3
            _lay(canvas, rows, _Things(*(part[rows] for part in vars(things).values())), min(side, patch))
    return (canvas + 0.5).astype(np.uint8)


@dataclass
class _Things:
    """Hold one object per scene, in pixels and radians."""

    shape: np.ndarray  #: int64 (B,)
    texture: np.ndarray  #: int64 (B,)
    ink: np.ndarray  #: float32 (B, 3)
    centre: np.ndarray  #: float32 (B, 2), x and y
    radius: np.ndarray  #: float32 (B,)
    angle: np.ndarray  #: float32 (B,)
    phase: np.ndarray  #: float32 (B,), of the pattern, in periods


def _lay(canvas: np.ndarray, scene: np.ndarray, things: _Things, patch: int) -> None:
    """Draw ``things`` onto the canvases ``scene`` of ``canvas``, float32 ``(·, 3, S, S)``."""
    corner = np.clip(np.floor(things.centre - patch / 2), 0, canvas.shape[-1] - patch).astype(np.int64)
    pixel = corner[:, :, None] + np.arange(patch)  # (B, 2, P): the columns, then the rows
    place = (pixel + 0.5 - things.centre[:, :, None]) / things.radius[:, None, None]
    x, y = place.astype(np.float32).transpose(1, 0, 2)
    cos, sin = np.cos(things.angle)[:, None, None], np.sin(things.angle)[:, None, None]
    u = cos * x[:, None, :] + sin * y[:, :, None]
    v = -sin * x[:, None, :] + cos * y[:, :, None]

    distance = np.empty_like(u)
    for kind, function in enumerate(SHAPES.values()):
        rows = np.flatnonzero(things.shape == kind)
        distance[rows] = function(u[rows], v[rows])
    coverage = np.clip(0.5 - distance * things.radius[:, None, None], 0, 1)[..., None]

    # The pattern is a paler shade of the same colour; white and black take a grey darker than any background.
    pale = things.ink + 0.65 * (255 - things.ink)
    colourless = np.ptp(things.ink, axis=1, keepdims=True) == 0
    shade = np.where(colourless, 110, pale)[:, None, None, :]
    ink = things.ink[:, None, None, :]
    paint = ink + _pattern(things, u, v)[..., None] * (shade - ink)

    where = (scene[:, None, None], slice(None), pixel[:, 1, :, None], pixel[:, 0, None, :])
    under = canvas[where]  # (B, P, P, 3): numpy moves the indexed axes to the front
    canvas[where] = under + coverage * (paint - under)


def _pattern(things: _Things, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return how much of the pattern's shade each pixel takes, in [0, 1]: stripes, dots, or none."""
    mark = np.zeros_like(u)
    radius, phase = things.radius[:, None, None], things.phase[:, None, None]
    period = np.maximum(0.52, 4.2 / radius)  # in radii, and never finer than the pixels can show

    def wave(t: np.ndarray, rows: np.ndarray, shift: np.ndarray | float) -> np.ndarray:
        return ((t[rows] / period[rows] + shift) % 1 - 0.5) * period[rows]

    rows = np.flatnonzero(things.texture == TEXTURES.index("striped"))
    stripe = np.abs(wave(v, rows, phase[rows])) - 0.22 * period[rows]
    mark[rows] = np.clip(0.5 - stripe * radius[rows], 0, 1)
    rows = np.flatnonzero(things.texture == TEXTURES.index("dotted"))
    dot = np.hypot(wave(u, rows, phase[rows]), wave(v, rows, 0.0)) - 0.3 * period[rows]
    mark[rows] = np.clip(0.5 - dot * radius[rows], 0, 1)
    return mark


# Signed distances in radii, y downwards. Each shape has about the same reach.

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.95


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.82


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(0.866 * np.abs(u) - 0.5 * (v - 0.15), v - 0.15) - 0.55


def _diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.83 * np.abs(u) + 0.56 * np.abs(v) - 0.6


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Fold the plane into one of ten equal sectors; there the edge is the line from the tip to the notch.
    fifth = 2 * math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
    reach = np.hypot(u, v)
    along, across = reach * np.cos(angle), reach * np.sin(angle)
    edge_along, edge_across = 0.48 * math.cos(fifth / 2) - _REACH, 0.48 * math.sin(fifth / 2)
    length = math.hypot(edge_along, edge_across)
    return (edge_across * (along - _REACH) - edge_along * across) / length


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.95, v - 0.33), np.maximum(u - 0.33, v - 0.95))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.7) - 0.27


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u - 0.25, v) - 1, 0.72 - np.hypot(u - 0.75, v))


SHAPES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
}
