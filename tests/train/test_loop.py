"""The loop: resumed runs are the same run, micro-batches the same step, and what it writes can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastclip
from fastclip.data.source import PairSource
from fastclip.train import checkpoint, metrics
from fastclip.train.config import Config, ConfigError
from fastclip.train.loop import Trainer, TrainingError, pick_backend, pick_device

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


def test_the_seed_decides_everything(make_trainer: Callable[..., Trainer]) -> None:
    runs = []
    for seed in (1, 1, 2):
        trainer = make_trainer(seed=seed, steps=3)
        trainer.train()
        runs.append(weights(trainer))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not torch.equal(runs[0]["visual.proj"], runs[2]["visual.proj"])


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
        trainer._encode_image = lambda x, m=trainer.model: m.encode_image(m.preprocess(x).double())  # type: ignore
        trainer._encode_text = trainer.model.encode_text  # type: ignore[method-assign]
        trainer._step(trainer.source.fetch(range(16), seed=0, epoch=0))
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
    trainer._step(pairs)
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


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_weights(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(steps=4)
    trainer.train(until=2)
    before = weights(trainer)
    clip_loss = fastclip.clip_loss
    monkeypatch.setattr(fastclip, "clip_loss", lambda *a, **k: clip_loss(*a, **k) * float("nan"))
    with pytest.raises(TrainingError, match=r"the loss became nan at step 2;.*--lr"):
        trainer.train()
    assert all(torch.equal(value, weights(trainer)[key]) for key, value in before.items())


def test_fewer_pairs_than_a_batch_still_train(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(batch_size=1000, epochs=3)
    trainer.train()
    assert trainer.step == 3


def test_unreadable_pairs_make_a_smaller_batch_and_a_batch_of_them_an_error(
    make_trainer: Callable[..., Trainer], blocks: Callable[..., PairSource]
) -> None:
    source = blocks()
    fetch = source.fetch

    def some(indices: torch.Tensor, **at: int) -> object:
        source.skipped["truncated"] += 1
        return fetch(indices[1:], **at)

    source.fetch = some  # type: ignore[method-assign, assignment]
    make_trainer(source=source, steps=2).train()

    def none(indices: torch.Tensor, **at: int) -> object:
        pairs = fetch(indices, **at)
        return type(pairs)(pairs.images[:0], [], pairs.labels[:0], pairs.indices[:0])

    source.fetch = none  # type: ignore[method-assign, assignment]
    with pytest.raises(
        TrainingError, match=r"no pair of a whole batch of blocks could be read \(truncated: \d+\)"
    ):
        make_trainer(source=source, steps=2).train()


def test_no_pairs_is_an_error(
    make_trainer: Callable[..., Trainer], blocks: Callable[..., PairSource]
) -> None:
    with pytest.raises(ConfigError, match="blocks has no pairs to train on"):
        make_trainer(source=blocks(copies=0))


def test_bfloat16_autocast_trains(make_trainer: Callable[..., Trainer]) -> None:
    losses = {}
    for precision in ("fp32", "amp_bf16"):
        trainer = make_trainer(precision=precision, steps=1)
        losses[precision], _ = trainer._step(trainer.source.fetch(range(16), seed=0, epoch=0))
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses["amp_bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["amp_bf16"] != losses["fp32"]


def test_device_and_backend_errors(tiny_config: Callable[..., Config]) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device quantum cannot be used"):
        pick_device("quantum")
    assert pick_backend("reference", torch.device("cpu")) == "reference"
    with pytest.raises(ConfigError, match="--backend nothing: backend must be 'auto' or one of"):
        pick_backend("nothing", torch.device("cpu"))
