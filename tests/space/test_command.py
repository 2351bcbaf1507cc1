"""What all commands share: help with examples, exit codes, unknown flags."""

from __future__ import annotations

from importlib import import_module

import pytest

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
