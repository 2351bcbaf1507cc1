"""The command line: defaults, flags, errors that help."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastclip.train import open_clip_flags
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
        ("--weight-decay", "--wd"),
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
        (["--config", "/nowhere.yaml"], "--config /nowhere.yaml cannot be read"),
        (["--resume", "latest"], "--resume latest needs --name"),
        (["--resume", "/nowhere"], "no checkpoint in /nowhere"),
    ],
)
def test_a_value_that_cannot_work_names_its_flag(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv)


def test_an_unknown_flag_that_is_near_none_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown flag --zzz-qqq \(--help lists all flags\)"):
        parse(["--zzz-qqq", "1"])


OPEN_CLIPS_FLAGS = shlex.split(
    "train-data train-data-upsampling-factors val-data train-num-samples val-num-samples dataset-type "
    "dataset-resampled csv-separator csv-img-key csv-caption-key imagenet-val imagenet-v2 cache-dir logs log-local "
    "name workers batch-size epochs epochs-cooldown lr beta1 beta2 eps wd momentum warmup opt use-bn-sync "
    "skip-scheduler lr-scheduler lr-cooldown-end lr-cooldown-power save-frequency save-most-recent "
    "zeroshot-frequency val-frequency resume precision model pretrained pretrained-image lock-image "
    "lock-image-unlocked-groups lock-image-freeze-bn-stats image-mean image-std image-interpolation "
    "image-resize-mode aug-cfg grad-checkpointing local-loss gather-with-grad force-context-length "
    "force-image-size force-quick-gelu force-patch-dropout force-custom-text torchscript torchcompile trace "
    "accum-freq device dist-url dist-backend report-to wandb-notes wandb-project-name debug copy-codebase horovod "
    "ddp-static-graph no-set-device-rank seed grad-clip-norm lock-text lock-text-unlocked-layers "
    "lock-text-freeze-layer-norm log-every-n-steps coca-caption-loss-weight coca-contrastive-loss-weight "
    "remote-sync remote-sync-frequency remote-sync-protocol delete-previous-checkpoint distill-model "
    "distill-pretrained use-bnb-linear siglip loss-dist-impl"
)


def test_every_flag_of_open_clip_is_ours_translated_or_refused() -> None:
    tables = (
        flags(),
        open_clip_flags.SWITCHES,
        open_clip_flags.VALUES,
        open_clip_flags.FIXED,
        open_clip_flags.CLASSES,
        open_clip_flags.REFUSED,
    )
    for flag in OPEN_CLIPS_FLAGS:
        assert sum(flag in table for table in tables) == 1, flag
    for table in tables[1:]:
        assert set(table) <= set(OPEN_CLIPS_FLAGS)


def test_the_list_of_open_clips_flags_is_open_clips() -> None:
    """Compare with the parser of the installed open_clip, as text: it is not imported."""
    root = Path(__file__).parents[2]
    parsers = list(root.glob(".venv-openclip/lib/python3*/site-packages/open_clip_train/params.py"))
    if not parsers:
        pytest.skip("open_clip is not installed; tools/openclip.sh installs it")
    theirs = re.findall(r"""["']--([a-z0-9-]+)["']""", parsers[0].read_text())
    assert set(theirs) == set(OPEN_CLIPS_FLAGS)


def test_open_clips_webdataset_command_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    told = shlex.split(
        "--train-data shards/{0000..0002}.tar --train-num-samples 3000 --dataset-type webdataset --batch-size 32 "
        "--precision amp --workers 4 --imagenet-val val --lr 1e-3 --wd 0.1 --epochs 30 --warmup 100 --opt adamw "
        "--dataset-resampled --debug --dist-backend=nccl --model ViT-B/32 --pretrained ''"
    )
    config = parse(told)
    same = shlex.split(
        "--train-data shards/{0000..0002}.tar --dataset-type webdataset --batch-size 32 --precision amp "
        "--zeroshot-data val --zeroshot-name imagenet --lr 1e-3 --wd 0.1 --epochs 30 --warmup 100 --model ViT-B-32"
    )
    assert config == parse(same)
    assert (config.run.zeroshot_data, config.model.model) == ("val", "ViT-B-32")
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in warnings] == [
        "--train-num-samples",
        "--imagenet-val",
        "--dataset-resampled",
        "--debug",
        "--dist-backend",
    ]
    assert "--train-num-samples 3000 changes nothing: pairs are counted" in warnings[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--opt timm/lamb", "--opt timm/lamb is not here: the optimizer is AdamW"),
        ("--opt", "--opt needs a value"),
        ("--horovod", "--horovod is not here: .*torchrun"),
        ("--aug-cfg scale=(0.4,1.0)", "--aug-cfg is not here: write --aug-scale"),
        ("--precision pure_fp16", "--precision pure_fp16 is not here: .*amp_fp16"),
        ("--precision=pure_fp16", "--precision pure_fp16 is not here: .*amp_fp16"),
        ("--dataset-type synthetic", "--dataset-type synthetic is not here: choose --train-data shapes"),
        ("--logs None", "--logs None is not here"),
        ("--lock-image-unlocked-groups 2", "--lock-image-unlocked-groups 2 is not here: .*--layer-decay"),
        ("--image-interpolation random", "--image-interpolation random is not here"),
        ("--imagenet-val a --zeroshot-data b", "are one setting"),
        ("--force-image-size 224 256", "pictures are square"),
    ],
)
def test_what_open_clip_has_and_we_have_not_says_what_to_do(argv: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv.split())


def test_open_clips_values_become_ours(capsys: pytest.CaptureFixture[str]) -> None:
    told = "--loss-dist-impl bidir --force-image-size 64 64 --lock-text-unlocked-layers 0 --imagenet-v2 w"
    ours = "--loss-dist-impl ring --force-image-size 64 --zeroshot-data w --zeroshot-name imagenetv2"
    assert parse(shlex.split(told)) == parse(shlex.split(ours))
    assert parse(["--imagenet-v2", "w", "--imagenet-val", "v"]).run.zeroshot_data == "v"
    assert "--imagenet-v2 w changes nothing: one folder is classified" in capsys.readouterr().err


def test_adams_defaults_are_the_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """open_clip's: 0.98 and 1e-6 for vision transformers, 0.999 and 1e-8 for others."""

    def adam(*argv: str) -> tuple[float, float]:
        optim = parse(["--train-data", "x", *argv]).optim
        return optim.beta2, optim.eps

    assert adam() == adam("--model", "ViT-L-14") == (0.98, 1e-6)
    assert adam("--model", "RN50") == adam("--model=RN50-quickgelu") == (0.999, 1e-8)
    assert adam("--model", "RN50", "--beta2", "0.98") == (0.98, 1e-8)
    file = tmp_path / "run.yaml"
    file.write_text("model: {model: RN50}\noptim: {eps: 1e-7}\n")
    assert adam("--config", str(file)) == (0.999, 1e-7)
    assert adam("--config", str(file), "--model", "ViT-B-32") == (0.98, 1e-7)
    assert main(["--train-data", "x", "--model", "RN50", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "beta2: 0.999\n" in printed and "eps: 1.0e-08\n" in printed


def test_what_open_clip_must_be_told_is_so_already(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--local-loss", "--gather-with-grad", "--lr", "1"]) == parse(["--lr", "1"])
    assert "--local-loss changes nothing: every logit is computed once" in capsys.readouterr().err


def test_what_a_device_brings_to_a_step() -> None:
    data = parse(["--batch-size", "8", "--accum-freq", "4"]).data
    assert (data.rows_per_rank, data.rows_at_a_time) == (32, 8)
    data = parse(["--batch-size", "8", "--accum-freq", "4", "--micro-batch-size", "3"]).data
    assert (data.rows_per_rank, data.rows_at_a_time) == (32, 3)
    assert parse(["--batch-size", "8"]).data.rows_at_a_time is None


def test_a_file_and_flags_say_the_same(tmp_path: Path) -> None:
    flags = ["--train-data", "x", "--lr", "0.25", "--ema", "0.99", "--lock-image", "--csv-separator", ";"]
    flags += ["--image-mean", "0.5", "0.25", "1", "--force-patch-dropout", "0"]
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
        ("optim: {zzz: 1}", r"unknown key optim\.zzz in --config [^;]*$"),
        ("zzz: {}", "unknown section 'zzz' in --config [^;]*; sections are data, model"),
        (
            "model: {image_mean: [1, 2]}",
            r"model\.image_mean .* must be three numbers or nothing, got \[1, 2\]",
        ),
        ("model: {image_std: [1, 0, 1]}", "--image-std must be positive numbers"),
        ("model: {force_patch_dropout: 1}", r"--force-patch-dropout must lie in \[0, 1\), got 1"),
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
    with pytest.raises(ConfigError, match=r"unknown key optim\.lrate in the config; did you mean lr"):
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


def test_help_with_train_data_shows_open_clips_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, size in ((["--help"], 256), (["--train-data", "x", "--help"], 64)):
        with pytest.raises(SystemExit):
            main(argv)
        words = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert re.search(rf"--batch-size INT [^()]*\(default: {size}\)", words), size


def test_help_lists_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastclip.train", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    for flag in flags():
        assert f"--{flag}" in done.stdout, flag
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "Defaults shown below are the demo's unless --train-data is on this command line" in words
