"""The zero-shot command: result, JSON, picture, and settings that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastclip.space import ZeroShotResult
from fastclip.zeroshot.__main__ import main
from fastclip.zeroshot.picture import draw_confusion
from tests.tiny_model import write_model, write_pictures


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zeroshot")
    write_pictures(root / "classes", 4)[0].write_bytes(b"gone")
    write_model(root / "model")
    return root


def test_a_folder_is_classified(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "names.json").write_text(json.dumps({"red": "crimson", "green": "lime", "blue": "navy"}))
    (tmp_path / "templates.txt").write_text("a {} thing\n\nsome {}\n")
    arguments = [
        str(world / "model"),
        str(world / "classes"),
        "--output",
        str(tmp_path / "out"),
        "--batch-size",
        "3",
    ]
    arguments += [
        "--classnames",
        str(tmp_path / "names.json"),
        "--templates",
        str(tmp_path / "templates.txt"),
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert (
        "11 pictures, 3 classes, 2 templates" in said
        and "chance 33.33 %" in said
        and "not a picture (1)" in said
    )
    result = json.loads((tmp_path / "out/zeroshot.json").read_text())
    assert result["templates"] == ["a {} thing", "some {}"]
    assert result["top5"] == 1
    assert sum(map(sum, result["confusion"])) == 11
    assert result["top1"] == pytest.approx(sum(result["confusion"][i][i] for i in range(3)) / 11)
    assert set(result["per_class"]) == {"crimson", "lime", "navy"}
    with Image.open(tmp_path / "out/confusion.png") as picture:
        assert min(picture.size) > 200


def test_of_many_classes_the_worst_are_drawn(tmp_path: Path) -> None:
    from PIL import Image

    confusion = torch.eye(300, dtype=torch.int64)
    confusion[7, 9] = 5
    draw_confusion(
        ZeroShotResult(tuple(map(str, range(300))), confusion, 0.9, 1, 1 / 300, 5 / 300), tmp_path / "a.png"
    )
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width < 3000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--templates", "nothing"], "is no file and none of the sets"),
        (["--classnames", "nowhere.json"], "cannot be read as JSON"),
        (["--workers", "0"], "at least 1"),
    ],
)
def test_errors(world: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(world / "model"), str(world / "classes"), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_without_classes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(world / "model"), str(world / "classes" / "red")]) == 1
    assert "at least two classes" in capsys.readouterr().err
