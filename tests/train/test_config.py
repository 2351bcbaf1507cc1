"""The command line: defaults, flags, errors that help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastclip.train.__main__ import main
from fastclip.train.config import Config, ConfigError, demo, flags, parse


def test_without_arguments_it_is_the_demo() -> None:
    config = parse([])
    assert config == demo()
    assert config.data.train_data is None
    assert config.model.model == "demo"


def test_with_train_data_defaults_are_open_clips() -> None:
    config = parse(["--train-data", "pictures"])
    assert config == Config(data=type(config.data)(train_data="pictures"))
    optim = config.optim
    assert (optim.lr, optim.beta1, optim.beta2, optim.eps, optim.wd) == (5e-4, 0.9, 0.98, 1e-6, 0.2)
    assert (config.data.batch_size, optim.epochs, optim.lr_scheduler) == (64, 32, "cosine")


def test_flags_are_flat_and_named_as_open_clips() -> None:
    names = (
        "train-data batch-size epochs lr beta1 beta2 eps wd warmup lr-scheduler grad-clip-norm precision model "
        "workers resume logs name seed siglip save-frequency val-frequency log-every-n-steps "
        "csv-img-key csv-caption-key csv-separator"
    )
    assert set(names.split()) <= set(flags())


def test_flags_win_over_the_preset() -> None:
    config = parse(["--lr", "0.5", "--batch_size=7", "--siglip", "--no-pictures", "--micro-batch-size", "3"])
    assert config.optim.lr == 0.5
    assert config.data.batch_size == 7
    assert config.data.micro_batch_size == 3
    assert config.loss.siglip
    assert not config.run.pictures
    assert config.optim.wd == demo().optim.wd


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--bach-size", "--batch-size"),
        ("--lrr=3", "--lr"),
        ("--weight-decay", "--"),
        ("--train_dat", "--train-data"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown flag --.*did you mean {nearest}"):
        parse([flag])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--micro-batch-size", "-3"], "--micro-batch-size must be at least 1, got -3"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--lr", "0"], "--lr must be a positive number, got 0"),
        (["--lr", "nan"], "--lr must be a positive number, got nan"),
        (["--wd", "-1"], "--wd must be at least 0"),
        (["--beta2", "1"], r"--beta2 must lie in \[0, 1\), got 1"),
        (["--grad-clip-norm", "0"], "--grad-clip-norm must be a positive number"),
        (["--keep-checkpoints", "0"], "--keep-checkpoints must be at least 1"),
        (["--resume", "latest"], "--resume latest needs --name"),
        (["--resume", "/nowhere"], "no checkpoint in /nowhere"),
    ],
)
def test_a_value_that_cannot_work_names_its_flag(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv)


def test_dict_and_back(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(lr=0.25, siglip=True, name="x", micro_batch_size=4)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key optim\.lrate in the config; did you mean"):
        Config.from_dict({"optim": {"lrate": 1}})
    with pytest.raises(ConfigError, match=r"unknown section 'optimm' in the config; did you mean optim"):
        Config.from_dict({"optimm": {}})


def test_wrong_settings_end_with_code_2_and_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logs = ["--logs", str(tmp_path)]
    for argv, message in {
        ("--model", "dmo"): "unknown --model dmo; did you mean demo?",
        ("--train-data", str(tmp_path / "none")): "does not exist",
        ("--device", "nothing"): "--device nothing cannot be used",
        ("--train-data", "shapes", "--backend", "magic"): "magic",
    }.items():
        assert main([*argv, *logs]) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
        assert "Traceback" not in error


def test_a_folder_without_captions_is_a_clear_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "lonely.png")
    assert main(["--train-data", str(tmp_path), "--logs", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --train-data: ") and "caption" in error
    assert not (tmp_path / "logs").exists()


def test_the_program_refuses_an_unknown_flag_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastclip.train", "--epoch", "3"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "unknown flag --epoch; did you mean --epochs?" in done.stderr
    assert done.stdout == ""


def test_help_lists_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastclip.train", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    for flag in flags():
        assert f"--{flag}" in done.stdout, flag
