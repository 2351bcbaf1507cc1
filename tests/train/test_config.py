"""The command line: defaults, flags, errors that help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastclip.train.__main__ import main
from fastclip.train.command_line import flags
from fastclip.train.command_line import parse as invoke
from fastclip.train.config import Config, ConfigError, demo


def parse(argv: list[str]) -> Config:
    return invoke(argv).config


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
    assert (config.data.workers, config.run.save_frequency, config.run.zeroshot_frequency) == (4, 1, 2)


def test_flags_are_flat_and_named_as_open_clips() -> None:
    names = (
        "train-data val-data dataset-type csv-img-key csv-caption-key csv-separator batch-size accum-freq epochs lr "
        "beta1 beta2 eps wd warmup lr-scheduler epochs-cooldown lr-cooldown-end lr-cooldown-power skip-scheduler "
        "grad-clip-norm precision workers model pretrained lock-image lock-text grad-checkpointing torchcompile "
        "siglip loss-dist-impl logs name resume seed device save-frequency val-frequency zeroshot-frequency "
        "report-to log-every-n-steps"
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
        (["--keep-checkpoints", "1"], "--keep-checkpoints must be at least 2"),
        (["--max-bad-share", "2"], r"--max-bad-share must lie in \[0, 1\], got 2"),
        (["--accum-freq", "0"], "--accum-freq must be at least 1"),
        (["--ema", "1"], r"--ema must lie in \[0, 1\)"),
        (["--layer-decay", "1.5"], "--layer-decay must be at most 1"),
        (["--lr-scheduler", "const-cooldown"], "const-cooldown needs --epochs-cooldown"),
        (["--imagenet-val", "x"], "open_clip's --imagenet-val is here --zeroshot-data"),
        (["--config", "/nowhere.yaml"], "--config /nowhere.yaml cannot be read"),
        (["--resume", "latest"], "--resume latest needs --name"),
        (["--resume", "/nowhere"], "no checkpoint in /nowhere"),
    ],
)
def test_a_value_that_cannot_work_names_its_flag(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv)


def test_what_open_clip_must_be_told_is_so_already(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--local-loss", "--gather-with-grad", "--lr", "1"]) == parse(["--lr", "1"])
    assert "--local-loss is not needed: every logit is computed once" in capsys.readouterr().err


def test_what_a_device_brings_to_a_step() -> None:
    data = parse(["--batch-size", "8", "--accum-freq", "4"]).data
    assert (data.rows_per_rank, data.rows_at_a_time) == (32, 8)
    data = parse(["--batch-size", "8", "--accum-freq", "4", "--micro-batch-size", "3"]).data
    assert (data.rows_per_rank, data.rows_at_a_time) == (32, 3)
    assert parse(["--batch-size", "8"]).data.rows_at_a_time is None


def test_a_file_and_flags_say_the_same(tmp_path: Path) -> None:
    flags = ["--train-data", "x", "--lr", "0.25", "--ema", "0.99", "--lock-image", "--csv-separator", ";"]
    config = parse([*flags, "--name", "ünï"])
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    assert parse(["--config", str(file)]) == config
    assert parse([f"--config={file}", "--lr", "0.5", "--no-lock-image"]) == parse(
        [*flags, "--name", "ünï", "--lr", "0.5", "--no-lock-image"]
    )


def test_a_file_of_a_few_settings_stands_on_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("optim:\n  lr: 1e-3\n  epochs: 3\n")  # YAML 1.1 reads 1e-3 as a text
    assert parse(["--config", str(file)]) == parse(["--lr", "1e-3", "--epochs", "3"])
    file.write_text("data: {train_data: pictures}\n")
    assert parse(["--config", str(file)]) == parse(["--train-data", "pictures"])
    file.write_text("")
    assert parse(["--config", str(file)]) == demo()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrate: 1}", r"unknown key optim\.lrate in --config .*; did you mean lr"),
        ("optim: {batch_size: 1}", "batch_size belongs into section data"),
        ("optimm: {}", "unknown section 'optimm' in --config .*; did you mean optim"),
        ("lr: 1", "unknown section 'lr'.*lr belongs into section optim"),
        ("optim: {epochs: many}", r"optim\.epochs in --config .* must be a whole number, got 'many'"),
        ("optim: {epochs: 1.5}", r"optim\.epochs .* must be a whole number, got 1.5"),
        ("optim: {lr: fast}", r"optim\.lr .* must be a number, got 'fast'"),
        ("loss: {siglip: 1}", r"loss\.siglip .* must be true or false, got 1"),
        ("model: {precision: fp8}", r"model\.precision .* must be one of auto, fp32, .*got 'fp8'"),
        ("data: [1]", "section data .* must be settings by name"),
        ("- 1", "must be settings by section"),
        ("{", "is no YAML"),
        ("optim: {lr: -1}", "--lr must be a positive number"),
    ],
)
def test_a_file_that_cannot_work_says_why(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(file)])


def test_print_config_prints_a_file_and_does_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--lr", "0.125", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(["--config", "printed.yaml"]) == parse(["--lr", "0.125"])
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


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
