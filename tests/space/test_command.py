"""What all commands share: help with examples, exit codes, unknown flags."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fastclip.models import load
from fastclip.space import command
from tests.tiny_model import write_model, write_run

COMMANDS = ["embed", "explore", "export", "search", "zeroshot"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_description_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module(f"fastclip.{name}.__main__").main
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert said.count(f"python -m fastclip.{name} ") >= 3  # usage, and two examples at least
    assert "Examples:" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_ends_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module(f"fastclip.{name}.__main__").main
    with pytest.raises(SystemExit) as stopped:
        main([*["a"] * {"embed": 3, "export": 2, "zeroshot": 2}.get(name, 1), "--nonsense", "1"])
    assert stopped.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("embed", "a", "b"), ("explore", "--data", "shapes"), ("export", "a"), ("zeroshot", "a")]
)
def test_a_model_that_is_not_there_ends_with_1(
    arguments: tuple[str, ...], tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = arguments
    main = import_module(f"fastclip.{name}.__main__").main
    assert main([f"{tmp_path}/nothing", *rest]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_runs_averaged_weights_are_taken_on_request(
    name: str,
    averaged: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken = []

    def note(path: str, **options: Any) -> None:
        taken.append(load(path, **{**options, "device": "cpu"}).model.visual.proj)
        raise command.CommandError("enough")

    monkeypatch.setattr(command, "load", note)
    run = str(write_run(tmp_path / "run"))
    arguments = {"search": ["folder", "--text", "a", "--model", run], "explore": [run]}.get(name, [run, "b"])
    if name == "embed":
        arguments.append("c")
    if name == "search":
        monkeypatch.setattr("fastclip.search.program.Embeddings", lambda path: None)
    if name == "export":
        monkeypatch.setattr("fastclip.export.program._require_packages", lambda: None)
    assert import_module(f"fastclip.{name}.__main__").main([*arguments, *["--averaged"] * averaged]) == 1
    last, mean = (load(run, averaged=which).model.visual.proj for which in (False, True))
    assert not last.equal(mean) and taken[0].equal(mean if averaged else last)
    told = f"{run}: the weights of its last step; --averaged takes the averaged ones\n"
    assert capsys.readouterr().err == ("" if averaged else told) + "error: enough\n"


def test_who_has_no_averaged_weights_is_told_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.open_model(str(write_model(tmp_path / "model")), "cpu")
    assert capsys.readouterr().err == ""
