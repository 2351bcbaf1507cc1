"""Give drawn scenes that test binding and relations: "a small striped red star left of a large blue square".

A model that only knows which words go with a picture cannot tell such a scene from the one with the colours,
or the sides, exchanged: both have the same words. Those exchanged captions are the hard negatives of the
held-out tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastclip.data.shapes_drawing import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Scenes, draw
from fastclip.data.source import HeldOut, Pairs, PairSource, as_indices, permutation, uniforms

QUERIES = 400  # pictures in each held-out test

# One colour per shape that training never shows: colour c on shape 3c + 1 (modulo 8, each shape once).
HELD_OUT_SHAPE = (3 * np.arange(len(COLOURS)) + 1) % len(SHAPES)
_TEST_SHARE = 16  # one whole scene in so many is kept out of training too

_SCENE_STREAM = 1  # and above: one per attempt at a scene; stream 0 is the drawing's


class ShapesSource(PairSource):
    """Give scenes of two shapes, drawn on demand, a function of the index.

    Args:
        image_size: side of the pictures, in pixels; below 32 the patterns no longer show.
        length: pairs in an epoch.
        seed: chooses the scenes.
        endless: show new scenes in every epoch, so that none comes twice; otherwise an epoch's scenes come
            back, newly placed.
        shuffled_captions: caption every scene as another one; the control.
    """

    def __init__(
        self,
        image_size: int = 64,
        length: int = 16384,
        seed: int = 0,
        endless: bool = False,
        shuffled_captions: bool = False,
    ) -> None:
        if image_size < 16:
            raise ValueError(
                f"image_size must be at least 16 pixels for shapes to be told apart, got {image_size}"
            )
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        super().__init__("shapes, shuffled captions" if shuffled_captions else "shapes", image_size)
        self._length, self._seed, self._endless = length, seed, endless
        self._captioned = permutation(length, seed, -1).numpy() if shuffled_captions else np.arange(length)

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True) -> Pairs:
        """Return the pairs at ``indices``; equal scenes share a label, whichever object is named first."""
        index = as_indices(indices, len(self))
        draws = uniforms(index, 13, seed=seed, epoch=epoch)
        if not augment:
            draws[:] = 0.5
        turn = epoch if self._endless else 0
        images = draw(_training_scenes(index, self._seed, turn), draws[:, :12], self.image_size)
        named = _training_scenes(self._captioned[index], self._seed, turn)
        captions = captions_of(named, draws[:, 12] < 0.5)
        return Pairs(
            torch.from_numpy(images), captions, torch.from_numpy(_identity(named)), torch.from_numpy(index)
        )

    def held_out(self) -> list[HeldOut]:
        """Return the tests: unseen combinations of colour and shape, exchanged colours, exchanged sides."""
        return [self._unseen_combinations(), self._exchanged("colours"), self._exchanged("sides")]

    def _unseen_combinations(self) -> HeldOut:
        """Ask for the colour of an object whose combination of colour and shape was never trained."""
        scenes = _draw_scenes(np.arange(QUERIES), self._seed, -1)
        which = np.arange(QUERIES) % 2
        rows = np.arange(QUERIES)
        colour, shape = scenes.colour.copy(), scenes.shape.copy()
        shape[rows, which] = HELD_OUT_SHAPE[colour[rows, which]]
        # The other object stays an ordinary one: its shape must differ, and suit its colour.
        other = (shape[rows, which] + 1 + rows % (len(SHAPES) - 2)) % len(SHAPES)
        clash = HELD_OUT_SHAPE[colour[rows, 1 - which]] == other
        shape[rows, 1 - which] = np.where(clash, (shape[rows, which] + len(SHAPES) - 1) % len(SHAPES), other)
        scenes = replace(scenes, shape=shape)

        options = []
        for candidate in range(len(COLOURS)):
            painted = colour.copy()
            painted[rows, which] = candidate
            options.append(captions_of(replace(scenes, colour=painted)))
        right = colour[rows, which]
        return self._test("unseen combination", scenes, options, right, "colour of eight", "R@1")

    def _exchanged(self, what: str) -> HeldOut:
        """Ask to choose between a scene's caption and the one with colours or sides exchanged."""
        scenes = _test_scenes(QUERIES, self._seed)
        if what == "colours":
            exchanged = replace(scenes, colour=scenes.colour[:, ::-1])
        else:
            size, texture, colour, shape = (part[:, ::-1] for part in _objects(scenes))
            exchanged = Scenes(size, texture, colour, shape, scenes.relation)
        options = [captions_of(scenes), captions_of(exchanged)]
        return self._test(
            f"exchanged {what}", scenes, options, np.zeros(QUERIES, int), "right of two", "choice"
        )

    def _test(
        self,
        name: str,
        scenes: Scenes,
        options: list[list[str]],
        right: np.ndarray,
        group_name: str,
        headline: str,
    ) -> HeldOut:
        """Return the test in which caption ``options[right[i]][i]`` is picture i's own."""
        gallery = sorted({caption for option in options for caption in option})
        position = {caption: i for i, caption in enumerate(gallery)}
        groups = torch.tensor(
            [[position[caption] for caption in choice] for choice in zip(*options, strict=True)]
        )
        target = groups.gather(1, torch.from_numpy(right)[:, None])[:, 0]
        draws = uniforms(np.arange(len(scenes)), 12, seed=self._seed, epoch=-2)
        images = torch.from_numpy(draw(scenes, draws, self.image_size))
        return HeldOut(name, images, gallery, target, groups, group_name, headline)


def captions_of(scenes: Scenes, from_second: np.ndarray | None = None) -> list[str]:
    """Return a caption per scene, told from its second object where ``from_second``, bool ``(B,)``, says."""
    colours, shapes = list(COLOURS), list(SHAPES)
    captions = []
    for i in range(len(scenes)):
        things = []
        for which in (0, 1):
            texture = TEXTURES[scenes.texture[i, which]]
            words = ["a", SIZES[scenes.size[i, which]], texture if texture != "plain" else "",
                     colours[scenes.colour[i, which]], shapes[scenes.shape[i, which]]]  # fmt: skip
            things.append(" ".join(filter(None, words)))
        forward, backward = RELATIONS[scenes.relation[i]]
        second = from_second is not None and bool(from_second[i])
        captions.append(
            f"{things[1]} {backward} {things[0]}" if second else f"{things[0]} {forward} {things[1]}"
        )
    return captions


def _objects(scenes: Scenes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return scenes.size, scenes.texture, scenes.colour, scenes.shape


def _identity(scenes: Scenes) -> np.ndarray:
    """Return a number per scene, int64 ``(B,)``; equal scenes have equal numbers."""
    number = scenes.relation
    kinds: tuple[Collection[str], ...] = (SIZES, TEXTURES, COLOURS, SHAPES)
    for which in (0, 1):
        for part, choices in zip(_objects(scenes), kinds, strict=True):
            number = number * len(choices) + part[:, which]
    return number


def _draw_scenes(index: np.ndarray, seed: int, epoch: int, attempt: int = 0) -> Scenes:
    """Return a scene per index, of two objects that differ in colour and in shape."""
    draws = uniforms(index, 9, seed=seed, epoch=epoch, stream=_SCENE_STREAM + attempt)

    def pick(column: int, choices: int) -> np.ndarray:
        return (draws[:, column] * choices).astype(np.int64)

    def pick_two_different(column: int, choices: int) -> np.ndarray:
        first = pick(column, choices)
        return np.stack([first, (first + 1 + pick(column + 1, choices - 1)) % choices], 1)

    size = np.stack([pick(0, len(SIZES)), pick(1, len(SIZES))], 1)
    texture = np.stack([pick(2, len(TEXTURES)), pick(3, len(TEXTURES))], 1)
    colour, shape = pick_two_different(4, len(COLOURS)), pick_two_different(6, len(SHAPES))
    return Scenes(size, texture, colour, shape, pick(8, len(RELATIONS)))


def _unseen(scenes: Scenes) -> np.ndarray:
    """Return bool ``(B,)``: whether an object has a combination of colour and shape that is held out."""
    return (HELD_OUT_SHAPE[scenes.colour] == scenes.shape).any(1)


def _kept_for_tests(scenes: Scenes) -> np.ndarray:
    """Return bool ``(B,)``: whether the scene as a whole is kept out of training; the same for every seed."""
    return uniforms(_identity(scenes), 1, seed=0, epoch=0)[:, 0] < 1 / _TEST_SHARE


def _training_scenes(index: np.ndarray, seed: int, epoch: int) -> Scenes:
    """Return the scenes of training; a scene that is held out is drawn anew until it is not."""
    scenes = _draw_scenes(index, seed, epoch)
    attempt, bad = 0, np.flatnonzero(_unseen(scenes) | _kept_for_tests(scenes))
    while len(bad):
        attempt += 1
        again = _draw_scenes(index[bad], seed, epoch, attempt)
        for part, new in zip(
            (*_objects(scenes), scenes.relation), (*_objects(again), again.relation), strict=True
        ):
            part[bad] = new
        bad = bad[_unseen(again) | _kept_for_tests(again)]
    return scenes


def _test_scenes(count: int, seed: int) -> Scenes:
    """Return distinct scenes kept out of training, whose colours and shapes all go together in training.

    That holds for their colours exchanged too, so that no option can be ruled out as a combination never met.
    """
    candidates = _draw_scenes(np.arange(64 * count), seed, -3)
    exchanged = replace(candidates, colour=candidates.colour[:, ::-1])
    fair = _kept_for_tests(candidates) & ~_unseen(candidates) & ~_unseen(exchanged)
    _, first = np.unique(np.where(fair, _identity(candidates), -1), return_index=True)
    chosen = np.sort(first[fair[first]])[:count]
    size, texture, colour, shape = (part[chosen] for part in _objects(candidates))
    return Scenes(size, texture, colour, shape, candidates.relation[chosen])
