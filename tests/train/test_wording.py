"""Lines that scripts written for open_clip's logs can read."""

from __future__ import annotations

import re

from fastclip.train.wording import eval_line, train_line

FIGURES = {
    "train/loss": 2.5,
    "train/scale": 14.286,
    "train/lr": 5e-4,
    "train/data_time": 0.01,
    "train/batch_time": 0.5,
    "train/samples_per_second": 128.0,
    "train/samples_per_second_per_gpu": 64.0,
}


def test_a_step_is_told_as_open_clip_tells_it() -> None:
    assert train_line("Train", 0, 64, 1280, FIGURES, average=3.0) == (
        "Train Epoch: 0 [  64/1280 (5%)] Data (t): 0.010 Batch (t): 0.500, 128.000/s, 64.0000/s/gpu "
        "LR: 0.000500 Logit Scale: 14.286 Contrastive_loss: 2.5000 (3.0000) Loss: 2.5000 (3.0000)"
    )
    # The expression with which people cut curves out of open_clip's logs.
    found = re.search(r"Train Epoch: (\d+) \[ *(\d+)/(\d+) .* Loss: ([\d.]+) \(([\d.]+)\)",
                      train_line("Train", 3, 640, 1280, FIGURES))  # fmt: skip
    assert found is not None and found.groups() == ("3", "640", "1280", "2.5000", "2.5000")


def test_what_was_skipped_is_said_only_where_there_is_any() -> None:
    assert "Skipped" not in train_line("Train", 0, 1, 2, {**FIGURES, "train/skipped_pairs": 0})
    line = train_line("Train", 0, 1, 2, {**FIGURES, "train/skipped_pairs": 3, "train/skipped_steps": 1})
    assert line.endswith("Skipped pairs: 3 steps: 1")


def test_an_evaluation_is_told_as_open_clip_tells_it() -> None:
    metrics = {"image_to_text_R@1": 0.25, "image_to_text_mean_rank": 12.5}
    assert (
        eval_line(2.0, metrics) == "Eval Epoch: 2 image_to_text_R@1: 0.2500\timage_to_text_mean_rank: 12.5000"
    )
    assert eval_line(2.5, metrics, "unseen").startswith("Eval Epoch: 2.5 unseen\timage_to_text_R@1: 0.2500")


def test_people_who_watch_get_a_short_line() -> None:
    metrics = {f"image_to_text_R@{k}": k / 100 for k in (1, 5, 10)} | {
        "image_to_text_mean_rank": 9.0,
        "choice": 0.5,
        "clip_val_loss": 2.0,
        "num_samples": 100,
    }
    line = eval_line(4.0, metrics, "unseen", brief=True)
    assert line == "Eval Epoch: 4 unseen  image to text R@1/5/10 0.010 0.050 0.100  choice 0.500"
