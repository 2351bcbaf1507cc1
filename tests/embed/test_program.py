"""Embedding: the layout, what is skipped, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from fastclip.data import open_source
from fastclip.embed.__main__ import main
from fastclip.embed.program import Options, run
from fastclip.space import Encoder, PictureFiles
from fastclip.space.command import CommandError, open_encoder
from fastclip.space.embeddings import Embeddings, EmbeddingsError
from tests.tiny_model import write_model, write_pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    files = write_pictures(tmp_path / "pictures", 4, captions=True)
    files[3].write_bytes(b"")
    files[5].with_suffix(".txt").unlink()
    return tmp_path / "pictures"


def test_the_layout_of_clip_retrieval(model: str, pictures: Path, tmp_path: Path) -> None:
    out = run(Options(model, str(pictures), str(tmp_path / "out"), batch_size=4, rows_per_part=4))
    names = sorted(str(file.relative_to(out)) for file in out.rglob("*.*"))
    parts = [f"{kind}/{kind}_{i}{suffix}" for kind, suffix in
             (("img_emb", ".npy"), ("metadata", ".parquet"), ("text_emb", ".npy")) for i in (0, 1, 2)]  # fmt: skip
    assert names == sorted([*parts, "embed.json", "skipped.txt"])
    images, texts = (np.concatenate([np.load(out / f"{kind}/{kind}_{i}.npy") for i in range(3)]) for kind in
                     ("img_emb", "text_emb"))  # fmt: skip
    table = pyarrow.concat_tables(
        pyarrow.parquet.read_table(out / f"metadata/metadata_{i}.parquet") for i in range(3)
    )
    assert images.shape == texts.shape == (10, 12) and images.dtype == np.float16 and table.num_rows == 10

    encoder = open_encoder(model, "cpu")
    row = 7
    path, caption = table["image_path"][row].as_py(), table["caption"][row].as_py()
    alone = encoder.images(PictureFiles([Path(path)], 16).read([0])[0])
    np.testing.assert_allclose(images[row], alone[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(texts[row], encoder.texts([caption])[0].numpy(), atol=1e-3)
    assert Path(path).with_suffix(".txt").read_text().strip() == caption

    said = dict(line.split("\t") for line in (out / "skipped.txt").read_text().splitlines())
    assert said == {str(pictures / "green/1.png"): "no caption", str(pictures / "red/3.png"): "empty file"}
    assert len(open_source(out, held_out_share=0.0)) == 10  # training reads it as precomputed features


def test_an_interrupted_run_goes_on(
    model: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = Options(model, str(pictures), str(tmp_path / "out"), rows_per_part=3, dtype="float32")
    whole = run(Options(model, str(pictures), str(tmp_path / "whole"), rows_per_part=3, dtype="float32"))
    encode, calls = Encoder.images, []

    def interrupted(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(Encoder, "images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(options)
    capsys.readouterr()
    run(options)
    assert "are there already; 2 of 4 parts to go" in capsys.readouterr().out
    assert len(calls) == 3 + 2
    for file in sorted(whole.rglob("*.npy")):
        assert (tmp_path / "out" / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert (tmp_path / "out/skipped.txt").read_text() == (whole / "skipped.txt").read_text()
    run(options)
    assert len(calls) == 5  # nothing left to do


def test_another_plan_or_other_files_are_refused(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(Options(model, str(pictures), str(out)))
    with pytest.raises(EmbeddingsError, match="differ in rows_per_part"):
        run(Options(model, str(pictures), str(out), rows_per_part=2))
    torch.manual_seed(1)
    with pytest.raises(EmbeddingsError, match="other files"):
        run(Options(model, str(pictures), str(pictures)))
    (out / "embed.json").write_text("{")
    with pytest.raises(EmbeddingsError, match="damaged"):
        run(Options(model, str(pictures), str(out)))


def test_pictures_without_captions(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures")[0].write_bytes(b"nothing")
    with pytest.raises(CommandError, match="--no-captions embeds pictures without captions"):
        run(Options(model, str(tmp_path / "pictures"), str(tmp_path / "out")))
    out = run(Options(model, str(tmp_path / "pictures"), str(tmp_path / "out"), captions=False))
    assert "8 rows" in capsys.readouterr().out
    assert not (out / "text_emb").exists()
    assert sum(len(part) for part in Embeddings(out).parts("images")) == 8


def test_a_table_is_embedded_too(model: str, tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "pictures")
    rows = [f"{file}\ta picture, {i}" for i, file in enumerate(files)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["where\twhat", *rows]))
    out = run(
        Options(
            model, str(tmp_path / "pairs.tsv"), str(tmp_path / "out"), image_key="where", caption_key="what"
        )
    )
    table = pyarrow.parquet.read_table(out / "metadata/metadata_0.parquet")
    assert table["caption"].to_pylist() == [f"a picture, {i}" for i in range(9)]


def test_nothing_readable_is_an_error(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in write_pictures(tmp_path / "pictures"):
        file.write_bytes(b"nothing")
    arguments = [model, str(tmp_path / "pictures"), str(tmp_path / "out"), "--no-captions"]
    assert main(arguments) == 1
    assert "none of the 9 pictures" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/embed.json").read_text())["parts"]["0"]["rows"] == 0


@pytest.mark.parametrize("flag", ["--batch-size", "--workers", "--rows-per-part"])
def test_numbers_below_one(model: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "somewhere", "out", flag, "0"]) == 1
    assert f"{flag} must be at least 1" in capsys.readouterr().err
