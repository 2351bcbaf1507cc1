"""The loop: resumed runs are the same run, micro-batches the same step, and what it writes can be read."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastclip
from fastclip.data.source import DataError, PairSource
from fastclip.train import checkpoint, metrics
from fastclip.train.build import pick_backend, pick_device
from fastclip.train.config import Config, ConfigError
from fastclip.train.encoders import Encoders
from fastclip.train.loop import Diverged, Trainer
from fastclip.train.step import Inputs

STEPS = 10  # of a run that resumes at 5: 108 pairs in batches of 16, so epochs have 6 steps


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("micro", [None, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_inside_an_epoch_is_the_same_run(
    make_trainer: Callable[..., Trainer], tmp_path: Path, micro: int | None, workers: int
) -> None:
    settings = {"steps": STEPS, "micro_batch_size": micro, "workers": workers, "grad_clip_norm": 1.0}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert whole.step == STEPS

    first = make_trainer(tmp_path / "parts", **settings)
    first.train(until=5)
    assert 0 < first.cursor.position < len(first.source)  # inside an epoch
    path = first.save()
    assert path is not None
    torch.manual_seed(99)  # whatever happens between the two processes
    second = make_trainer(tmp_path / "parts", seed=0, **settings)
    second.resume(checkpoint.load(path))
    second.train()

    for key, value in weights(whole).items():
        assert torch.equal(value, weights(second)[key]), key
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        for slot, value in whole.optimizer.state[a].items():
            assert torch.equal(value, second.optimizer.state[b][slot])
    losses = [
        [
            line["train/loss"]
            for line in metrics.read(tmp_path / run / "metrics.jsonl")
            if "train/loss" in line
        ]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_lines_written_after_the_checkpoint_are_written_again_not_twice(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    first = make_trainer(tmp_path / "run", steps=8, save_every_n_steps=3)
    first.train(until=5)  # crashed here: the last checkpoint is of step 3
    second = make_trainer(tmp_path / "run", steps=8, save_every_n_steps=3)
    second.resume(checkpoint.load(tmp_path / "run" / "checkpoints" / "step_00000003"))
    second.train()
    steps = [
        line["step"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line
    ]
    assert steps == list(range(1, 9))


def test_exams_cut_short_are_sat_by_the_resumed_run_and_others_are_not_sat_again(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is saved before its exams: killed in one of them, it loses nothing."""
    settings = {"epochs": 2, "val_frequency": 1, "save_frequency": 1, "keep_checkpoints": 9}
    make_trainer(tmp_path / "whole", **settings).train()
    first = make_trainer(tmp_path / "cut", **settings)
    monkeypatch.setattr(first.exams, "retrieval", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first.train()

    def resumed(step: int) -> tuple[Trainer, list[int]]:
        trainer, sat = make_trainer(tmp_path / "cut", **settings), []
        sit = trainer.exams.retrieval
        monkeypatch.setattr(trainer.exams, "retrieval", lambda: sat.append(trainer.step) or sit())
        trainer.resume(checkpoint.load(tmp_path / "cut" / "checkpoints" / f"step_{step:08}"))
        trainer.train()
        figures = [
            [line for line in metrics.read(tmp_path / run / "metrics.jsonl") if "train/loss" not in line]
            for run in ("whole", "cut")
        ]
        assert figures[0] == figures[1] and [line["step"] for line in figures[0]] == [6, 12]
        return trainer, sat

    second, sat = resumed(6)
    assert sat == [6, 12] and second.exams.results
    assert resumed(6)[1] == [12]
    ended, sat = resumed(12)  # nothing is left to do, but the report wants the figures
    assert sat == [12] and ended.exams.results[0].metrics == second.exams.results[0].metrics


def test_the_seed_decides_everything(make_trainer: Callable[..., Trainer]) -> None:
    runs = []
    for seed in (1, 1, 2):
        trainer = make_trainer(seed=seed, steps=3)
        trainer.train()
        runs.append(weights(trainer))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not torch.equal(runs[0]["visual.proj"], runs[2]["visual.proj"])


def first_inputs(trainer: Trainer, rows: int = 16) -> Inputs:
    """Return the first pairs of the source as the step takes them."""
    return trainer.inputs(trainer.source.fetch(range(rows), seed=0, epoch=0))


def in_float64(trainer: Trainer) -> Callable[..., torch.Tensor]:
    """Return what the encoders do, without going through float32."""
    model = trainer.model

    def encode(images: torch.Tensor | None, texts: torch.Tensor | None) -> torch.Tensor:
        if images is not None:
            return model.encode_image(model.preprocess(images).double())
        return model.encode_text(texts)

    return encode


@pytest.mark.parametrize("micro", [1, 5, 15])
@pytest.mark.parametrize("siglip", [False, True])
def test_micro_batches_take_the_step_of_the_whole_batch(
    make_trainer: Callable[..., Trainer], micro: int, siglip: bool
) -> None:
    """In float64, where rounding cannot hide a wrong gradient."""
    gradients = []
    for size in (None, micro):
        trainer = make_trainer(micro_batch_size=size, siglip=siglip)
        trainer.model.double()
        trainer.encoders.forward = in_float64(trainer)  # type: ignore[method-assign]
        trainer.take_step(first_inputs(trainer), 1e-3)
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters()})
    for name, grad in gradients[0].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-9, atol=1e-13, msg=name)


def test_equal_captions_are_not_negatives_of_each_other(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    clip_loss = fastclip.clip_loss

    def spy(*features: torch.Tensor, labels: torch.Tensor, **rest: object) -> torch.Tensor:
        seen.append(labels)
        return clip_loss(*features, labels=labels, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fastclip, "clip_loss", spy)
    trainer = make_trainer()
    pairs = trainer.source.fetch([0, 36, 1], seed=0, epoch=0)  # 0 and 36 are copies
    assert pairs.captions[0] == pairs.captions[1]
    trainer.take_step(trainer.inputs(pairs), 1e-3)
    assert torch.equal(seen[0], pairs.labels) and seen[0][0] == seen[0][1]


def test_metrics_have_open_clips_keys(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=2, val_frequency=1).train()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "train/loss" in line]
    val = [line for line in lines if "val/image_to_text_R@1" in line]
    assert [line["step"] for line in train] == list(range(1, 13))
    assert [(line["step"], line["epoch"]) for line in val] == [(6, 1.0), (12, 2.0)]
    for key in ("loss", "scale", "lr", "samples_per_second", "batch_time", "data_time"):
        assert all(isinstance(line[f"train/{key}"], float) for line in train), key
    for direction in ("image_to_text", "text_to_image"):
        for figure in ("R@1", "R@5", "R@10", "mean_rank", "median_rank"):
            assert isinstance(val[0][f"val/{direction}_{figure}"], float)
    assert train[0]["train/scale"] == pytest.approx(1 / 0.07, rel=1e-2)


def test_the_logit_scale_stays_within_bounds(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(lr=1.0, warmup=0, steps=4)
    with torch.no_grad():
        trainer.model.logit_scale.fill_(4.6)
    trainer.train()
    assert 1.0 <= trainer.model.logit_scale.exp().item() <= 100.001


def broken_loss(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> list[int]:
    """Multiply the loss of some calls, counted from 1, by a number; return a list that grows with every call."""
    clip_loss, calls = fastclip.clip_loss, []

    def loss(*features: torch.Tensor, **rest: object) -> torch.Tensor:
        calls.append(len(calls) + 1)
        return clip_loss(*features, **rest) * factors.get(calls[-1], 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(fastclip, "clip_loss", loss)
    return calls


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_whose_loss_is_no_number_is_skipped(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    broken_loss(monkeypatch, {3: factor})
    trainer = make_trainer(tmp_path, steps=5, ema=0.5)
    trainer.train(until=2)
    before, state = weights(trainer), copy.deepcopy(trainer.optimizer.state_dict()["state"])
    average = {key: value.clone() for key, value in trainer.averaged.weights.items()}
    trainer.train(until=3)
    assert all(torch.equal(value, weights(trainer)[key]) for key, value in before.items())
    assert all(torch.equal(value, trainer.averaged.weights[key]) for key, value in average.items())
    for number, slots in trainer.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[number][slot]) for slot, value in slots.items())
    assert (trainer.step, trainer.skipped_steps) == (3, 1)
    trainer.train()
    assert not torch.equal(weights(trainer)["visual.proj"], before["visual.proj"])
    assert trainer.skipped_in_a_row == 0
    last = [line for line in metrics.read(tmp_path / "metrics.jsonl") if "train/loss" in line][-1]
    assert last["train/skipped_steps"] == 1 and math.isfinite(last["train/loss"])


def test_too_many_skipped_steps_in_a_row_end_the_run(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_loss(monkeypatch, {step: math.nan for step in (2, 3, 5, 6, 7)})
    trainer = make_trainer(steps=12, max_skipped_steps=3)
    with pytest.raises(Diverged, match=r"not finite in 3 steps in a row, up to step 7 .*lower --lr"):
        trainer.train()
    assert trainer.skipped_steps == 5
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_overflows_of_float16_halve_the_scale_and_a_finite_step_is_taken(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(steps=6, precision="amp")
    assert trainer.scaler is not None
    trainer.scaler.factor = 2.0**40  # overflows in any step
    trainer.train()
    assert trainer.scaler.factor == 2.0 ** (40 - trainer.skipped_steps) and trainer.skipped_steps == 6
    trainer.scaler.factor, trainer.scaler.interval = 2.0**10, 2
    before = weights(trainer)
    outcomes = [trainer.take_step(first_inputs(trainer), 1e-3) for _ in range(2)]
    assert all(outcome.taken for outcome in outcomes) and trainer.scaler.factor == 2.0**11
    assert not torch.equal(before["visual.proj"], weights(trainer)["visual.proj"])


def test_fewer_pairs_than_a_batch_still_train(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(batch_size=1000, epochs=3)
    trainer.train()
    assert trainer.step == 3


def test_too_many_unreadable_pairs_end_the_run(
    make_trainer: Callable[..., Trainer], blocks: Callable[..., PairSource]
) -> None:
    source = blocks()
    fetch = source.fetch

    def none(indices: torch.Tensor, **at: int) -> object:
        source.skipped["truncated"] += len(indices)
        return fetch(indices, **at).take(torch.arange(0))

    source.fetch = none  # type: ignore[method-assign, assignment]
    with pytest.raises(DataError, match=r"pairs of blocks that were tried cannot be read.*truncated"):
        make_trainer(source=source, steps=2).train()


def test_no_pairs_is_an_error(
    make_trainer: Callable[..., Trainer], blocks: Callable[..., PairSource]
) -> None:
    with pytest.raises(ConfigError, match="blocks has no pairs to train on"):
        make_trainer(source=blocks(copies=0))


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_bfloat16", "amp", "pure_bf16"])
def test_low_precision_trains(make_trainer: Callable[..., Trainer], precision: str) -> None:
    losses = {}
    for name in ("fp32", precision):
        trainer = make_trainer(precision=name, steps=1)
        before = weights(trainer)
        outcome = trainer.take_step(first_inputs(trainer), 1e-3)
        losses[name] = outcome.loss
        assert outcome.taken and not torch.equal(before["visual.proj"], weights(trainer)["visual.proj"])
        low = {key for key, value in trainer.model.state_dict().items() if value.dtype == torch.bfloat16}
        everything = set(trainer.model.state_dict()) - {"logit_scale"}
        assert low == (everything if name == "pure_bf16" else set())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses[precision] != losses["fp32"]


def test_accumulation_is_the_step_of_the_whole_batch(make_trainer: Callable[..., Trainer]) -> None:
    """Four times 8 pairs are one batch of 32, the scale's gradient included."""
    whole, parts = make_trainer(batch_size=32), make_trainer(batch_size=8, accum_freq=4)
    assert whole.total_steps == parts.total_steps and parts.batch_size == 32
    for trainer in (whole, parts):
        trainer.take_step(first_inputs(trainer, 32), 1e-3)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        error = (a.grad - b.grad).norm() / a.grad.norm().clamp_min(1e-6)
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_locked_tower_stays_as_it_is(make_trainer: Callable[..., Trainer], side: str) -> None:
    trainer = make_trainer(steps=2, **{f"lock_{side}": True})
    before = weights(trainer)
    trainer.train()
    changed = {key for key, value in weights(trainer).items() if not torch.equal(value, before[key])}
    image = {key for key in before if key.startswith("visual.")}
    assert changed == (set(before) - image if side == "image" else image | {"logit_scale"})


def test_tests_are_taken_with_averaged_weights(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """An average that never moves has the figures of the first weights; it is saved, and goes on after a resume."""
    fresh = make_trainer().exams.retrieval()["val"]
    trainer = make_trainer(tmp_path, epochs=4, ema=0.9)
    trainer.averaged.update = lambda: None  # type: ignore[method-assign, union-attr]
    trainer.train()
    assert trainer.exams.results[0].metrics == fresh.metrics
    trainer.averaged = None  # type: ignore[assignment]
    trainer.exams.averaged = None
    assert trainer.exams.retrieval()["val"].metrics != fresh.metrics
    other = make_trainer(tmp_path, epochs=4, ema=0.9)
    saved = checkpoint.load(next((tmp_path / "checkpoints").iterdir()))
    start = make_trainer().model.state_dict()
    assert saved.ema is not None and all(torch.equal(value, start[key]) for key, value in saved.ema.items())
    other.resume(saved)
    assert all(torch.equal(value, saved.ema[key]) for key, value in other.averaged.weights.items())  # type: ignore[union-attr]


@pytest.mark.parametrize("micro", [None, 5])
def test_compiled_encoders_take_the_same_step(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, micro: int | None
) -> None:
    """Traced as for any backend; this one runs what was traced as it is."""
    monkeypatch.setattr(Encoders, "compile", lambda self: torch.nn.Module.compile(self, backend="eager"))
    plain = make_trainer(micro_batch_size=micro)
    compiled = make_trainer(micro_batch_size=micro, torchcompile=True)
    for _ in range(2):
        outcomes = [t.take_step(first_inputs(t), 1e-3) for t in (plain, compiled)]
        assert outcomes[1].loss == pytest.approx(outcomes[0].loss, rel=1e-5)
    assert weights(compiled).keys() == weights(plain).keys()


def test_gradient_checkpointing_takes_the_same_step(make_trainer: Callable[..., Trainer]) -> None:
    outcomes = []
    for enabled in (False, True):
        trainer = make_trainer(grad_checkpointing=enabled)
        outcomes.append(trainer.take_step(first_inputs(trainer), 1e-3))
    assert outcomes[0] == outcomes[1]


def test_device_and_backend_errors(tiny_config: Callable[..., Config]) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device quantum cannot be used"):
        pick_device("quantum")
    assert pick_backend("reference", torch.device("cpu")) == "reference"
    with pytest.raises(ConfigError, match="--backend nothing: backend must be 'auto' or one of"):
        pick_backend("nothing", torch.device("cpu"))
