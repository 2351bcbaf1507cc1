"""Zero-shot classification inside a run: of any folder of classes, beside chance, under open_clip's kind of key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastclip.train import metrics
from fastclip.train.config import ConfigError, RunConfig
from fastclip.train.loop import Trainer
from fastclip.train.report import Summary, text_table, write_report
from fastclip.train.zeroshot import open_classes
from tests.train.conftest import COLOURS, caption, picture


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Make a folder of six classes, four pictures each: the blocks the tiny model is trained on, and a broken file."""
    for colour in list(COLOURS)[:6]:
        folder = tmp_path / "corners" / caption(colour, "top right").replace(" ", "_")
        folder.mkdir(parents=True)
        for i in range(4):
            pixels = (picture(colour, "top right") - i).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"")
    return tmp_path / "corners"


def test_a_run_classifies_as_often_as_asked_and_learns_to(
    make_trainer: Callable[..., Trainer], tmp_path: Path, classes: Path
) -> None:
    trainer = make_trainer(tmp_path / "run", epochs=12, zeroshot_data=str(classes), zeroshot_frequency=4)
    trainer.train()
    lines = [
        line
        for line in metrics.read(tmp_path / "run" / "metrics.jsonl")
        if "val/corners-zeroshot-val-top1" in line
    ]
    assert [line["epoch"] for line in lines] == [4.0, 8.0, 12.0]
    result = trainer.exams.classified
    assert result is not None and (result.pictures, result.captions, result.answers) == (24, 6, "classes")
    assert result.metrics["top1"] == lines[-1]["val/corners-zeroshot-val-top1"] > 2 * result.chance["top1"]
    assert result.chance == {"top1": pytest.approx(1 / 6), "top5": pytest.approx(5 / 6)}

    summary = Summary(
        "a run", [*trainer.exams.results, result], trainer.exams.results, "itself", [], {}, None
    )
    assert "zero-shot classes (24 pictures, 6 classes)" in text_table(summary)
    assert "right class among five" in write_report(summary, tmp_path / "run").read_text()


def test_classes_can_have_names_and_sentences_of_their_own(
    make_trainer: Callable[..., Trainer], tmp_path: Path, classes: Path
) -> None:
    """Folders with codes for names are classified as well as folders with names, once the names are given."""
    names, coded = tmp_path / "names.json", tmp_path / "coded"
    coded.mkdir()
    folders = sorted(path for path in classes.iterdir() if path.is_dir())
    for number, folder in enumerate(folders):
        folder.rename(coded / f"n{number:08}")
    names.write_text(json.dumps({f"n{i:08}": folder.name for i, folder in enumerate(folders)}))
    (tmp_path / "sentences.txt").write_text("{}\n\n{} again\n")
    flags = {"zeroshot_classnames": str(names), "zeroshot_templates": str(tmp_path / "sentences.txt")}
    trainer = make_trainer(zeroshot_data=str(coded), epochs=12, **flags)
    asked: list[str] = []
    tokenizer = trainer.exams.tokenizer
    trainer.exams.tokenizer = lambda texts: asked.extend(texts) or tokenizer(texts)  # type: ignore[func-returns-value]
    trainer.train()
    assert {f"{folder.name} again" for folder in folders} | {folder.name for folder in folders} <= set(asked)
    assert not [text for text in asked if "n0000" in text]
    assert trainer.exams.classified is not None
    assert trainer.exams.classified.metrics["top1"] > 2 / 6


def test_a_folder_without_classes_is_a_clear_error(tmp_path: Path, classes: Path) -> None:
    assert open_classes(RunConfig(), 16) is None
    with pytest.raises(ConfigError, match=r"--zeroshot-data: .*nowhere is no folder"):
        open_classes(RunConfig(zeroshot_data=str(tmp_path / "nowhere")), 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--zeroshot-data: .*at least two classes"):
        open_classes(RunConfig(zeroshot_data=str(tmp_path / "empty")), 16)
    data = str(classes)
    with pytest.raises(ConfigError, match=r"--zeroshot-classnames: .* cannot be read as JSON"):
        open_classes(RunConfig(zeroshot_data=data, zeroshot_classnames=f"{tmp_path}/no.json"), 16)
    (tmp_path / "few.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"--zeroshot-data: names has no entry for 6 folders"):
        open_classes(RunConfig(zeroshot_data=data, zeroshot_classnames=f"{tmp_path}/few.json"), 16)
    with pytest.raises(ConfigError, match=r"--zeroshot-templates: .* none of the sets plain, general"):
        open_classes(RunConfig(zeroshot_data=data, zeroshot_templates="haiku"), 16)
