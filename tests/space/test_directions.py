"""Ways, sums and attribute directions: values against formulas, and errors that say what to do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastclip.space import attribute_direction, compose, interpolate, parse_sum


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("mode", ["spherical", "linear"])
def test_a_way_starts_and_ends_at_its_ends_and_stays_on_the_sphere(mode: str) -> None:
    a, b = 3 * unit(5, 8), 0.1 * unit(5, 8, seed=1)
    way = interpolate(a, b, torch.linspace(0, 1, 7), mode=mode)
    assert way.shape == (7, 5, 8)
    torch.testing.assert_close(way.norm(dim=-1), torch.ones(7, 5))
    torch.testing.assert_close(way[0], F.normalize(a, dim=-1))
    torch.testing.assert_close(way[-1], F.normalize(b, dim=-1))


def test_equal_steps_are_equal_angles_on_the_sphere_only() -> None:
    a, b = torch.tensor([1.0, 0.0, 0.0]), F.normalize(torch.tensor([-0.8, 0.6, 0.0]), dim=0)
    steps = torch.linspace(0, 1, 9)
    angles = {
        mode: (interpolate(a, b, steps, mode=mode) @ a).clamp(-1, 1).acos().diff()
        for mode in ("spherical", "linear")
    }
    torch.testing.assert_close(angles["spherical"], torch.full((8,), math.acos(-0.8) / 8), atol=1e-4, rtol=0)
    assert angles["linear"].max() > 1.5 * angles["linear"].min()


def test_a_way_between_nearly_equal_points_is_finite() -> None:
    a = unit(6)
    torch.testing.assert_close(interpolate(a, a, 0.5), a)
    b = F.normalize(a + 1e-6, dim=0)
    assert interpolate(a, b, 0.5).isfinite().all()


def test_a_way_between_opposite_points_is_refused() -> None:
    a = unit(6)
    with pytest.raises(ValueError, match="opposite"):
        interpolate(a, -a, 0.5)


def test_half_precision_goes_in_and_comes_out() -> None:
    a, b = unit(4, 8).half(), unit(4, 8, seed=1).half()
    assert interpolate(a, b, 0.5).dtype == torch.float16
    assert compose([a, b]).dtype == torch.float16


def test_compose_adds_directions_whatever_their_lengths() -> None:
    a, b, c = unit(8), unit(8, seed=1), unit(8, seed=2)
    expected = F.normalize(a + b - 0.5 * c, dim=0)
    torch.testing.assert_close(compose([100 * a, b], [0.01 * c], weights=[1, 1, 0.5]), expected)
    batch = compose([unit(3, 8, seed=3), a], [c])
    torch.testing.assert_close(batch, F.normalize(unit(3, 8, seed=3) + a - c, dim=1))


@pytest.mark.parametrize(
    ("plus", "minus", "weights", "said"),
    [
        ([], [], None, "plus is empty"),
        ([unit(4)], [unit(4)], None, "cancel out"),
        ([unit(4)], [], [1, 2], "weights must have 1 entries"),
        ([unit(4), unit(5)], [], None, "one model"),
    ],
)
def test_a_sum_without_sense_is_refused(plus: list, minus: list, weights: list | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose(plus, minus, weights=weights)


def test_a_written_sum_is_read() -> None:
    assert parse_sum("a cat + a well-known hat - a dog") == [
        (1, "a cat"),
        (1, "a well-known hat"),
        (-1, "a dog"),
    ]
    assert parse_sum("- a + b") == [(-1, "a"), (1, "b")]
    for wrong in ("", "a +  + b", "- a"):
        with pytest.raises(ValueError, match="cannot read the sum"):
            parse_sum(wrong)


def test_an_attribute_direction_separates_and_moves() -> None:
    things, attribute = unit(40, 16), unit(16, seed=1)
    without, having = things, F.normalize(things + 0.8 * attribute, dim=1)
    direction = attribute_direction(having, without)
    assert direction.vector @ attribute > 0.8
    assert direction.score(having).mean() > 0 > direction.score(without).mean()
    moved = direction.add(without)
    assert ((moved * having).sum(1) > (without * having).sum(1)).all()
    with pytest.raises(ValueError, match="same mean"):
        attribute_direction(having, having)
