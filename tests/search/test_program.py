"""Search: the nearest by plain torch, sums, pictures as queries, the sheet, and folders that others wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastclip.embed.program import Options as EmbedOptions
from fastclip.embed.program import run as embed
from fastclip.search.__main__ import main
from fastclip.search.program import Options, load_pictures, run
from fastclip.space import compose
from fastclip.space.command import CommandError, open_encoder
from fastclip.space.embeddings import Embeddings, EmbeddingsError
from tests.tiny_model import write_model, write_pictures, write_run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[Path]]:
    """Return a model, embeddings in three parts, and the picture files."""
    root = tmp_path_factory.mktemp("search")
    files = write_pictures(root / "pictures", captions=True)
    model = str(write_model(root / "model"))
    folder = embed(
        EmbedOptions(model, str(root / "pictures"), str(root / "out"), rows_per_part=4, dtype="float32")
    )
    return model, str(folder), files


def test_answers_are_the_nearest_over_all_parts(world: tuple[str, str, list[Path]]) -> None:
    model, folder, _ = world
    (query,) = run(Options(folder, text=("a red square",), k=20))
    encoder = open_encoder(model, "cpu")
    z = encoder.texts(["a red square"]) @ torch.cat(list(Embeddings(Path(folder)).parts("images"))).T
    values, order = z[0].sort(descending=True)
    assert [hit.row.index for hit in query.hits] == order.tolist()
    assert [hit.cosine for hit in query.hits] == pytest.approx(values.tolist(), abs=1e-5)
    (query,) = run(Options(folder, text=("a red square number 1",), side="texts", k=1))
    assert query.hits[0].row.caption == "a red square number 1"
    assert query.hits[0].cosine == pytest.approx(1, abs=1e-5)


def test_queries_take_the_weights_that_the_folder_was_embedded_with(
    world: tuple[str, str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder, pictures = str(write_run(tmp_path / "run")), str(world[2][0].parents[1])
    text = "a red square number 1"
    for averaged in (False, True):
        output = str(tmp_path / f"averaged-{averaged}")
        embed(EmbedOptions(run_folder, pictures, output, dtype="float32", averaged=averaged))
        (query,) = run(Options(output, text=(text,), side="texts", k=1))
        assert (query.hits[0].row.caption, query.hits[0].cosine) == (text, pytest.approx(1, abs=1e-5))
        (query,) = run(
            Options(output, text=(text,), side="texts", k=1, model=run_folder, averaged=not averaged)
        )
        assert query.hits[0].cosine < 0.99
    assert main([output, "--text", text, "--averaged"]) == 1
    assert "--averaged goes with --model" in capsys.readouterr().err
    with pytest.raises(EmbeddingsError, match="differ in fingerprint, averaged"):
        embed(EmbedOptions(run_folder, pictures, output, dtype="float32"))


def test_a_picture_finds_itself_and_a_sum_is_a_sum(world: tuple[str, str, list[Path]]) -> None:
    model, folder, files = world
    (query,) = run(Options(folder, image=(str(files[4]),), k=2))
    assert query.hits[0].row.image_path == str(files[4])
    encoder = open_encoder(model, "cpu")
    a, b, c = encoder.texts(["a cat", "a hat", "a dog"])
    expected = compose([a, b], [c]) @ torch.cat(list(Embeddings(Path(folder)).parts("images"))).T
    (query,) = run(Options(folder, text=("a cat + a hat - a dog",), k=1))
    assert query.hits[0].cosine == pytest.approx(expected.max().item(), abs=1e-5)


def test_sheet_and_json(
    world: tuple[str, str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    _, folder, files = world
    sheet, answers = tmp_path / "found.png", tmp_path / "found.json"
    arguments = [folder, "--text", "red", "green", "--image", str(files[0]), "--k", "3"]
    assert main([*arguments, "--sheet", str(sheet), "--json", str(answers)]) == 0
    with Image.open(sheet) as picture:
        assert picture.width > 600
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (220, 40, 40) in colours  # the red picture that found itself
    assert [query["query"] for query in json.loads(answers.read_text())] == ["red", "green", str(files[0])]
    capsys.readouterr()
    assert main([*arguments, "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)[2]["answers"]) == 3


def test_pictures_that_are_no_files_come_from_the_source(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "pictures")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {"image": [file.read_bytes() for file in files], "text": [str(i) for i in range(9)]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    model = write_model(tmp_path / "model")
    folder = embed(EmbedOptions(str(model), str(tmp_path / "pairs.parquet"), str(tmp_path / "out")))
    store = Embeddings(folder)
    rows = store.rows([0, 8])
    pictures = load_pictures(store, rows)
    assert pictures[rows[0]][:, 2, 2].tolist() == [220, 40, 40]
    assert pictures[rows[1]][:, 2, 2].tolist() == [50, 80, 220]


def test_a_folder_of_somebody_else(world: tuple[str, str, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", np.eye(12, dtype=np.float16))
    with pytest.raises(CommandError, match="--model"):
        run(Options(str(tmp_path), text=("a",)))
    (query,) = run(Options(str(tmp_path), text=("a",), model=world[0], k=3))
    assert len(query.hits) == 3 and query.hits[0].row.image_path == ""
    np.save(tmp_path / "img_emb/img_emb_0.npy", np.eye(5, dtype=np.float16))
    with pytest.raises(CommandError, match="points of 12 numbers"):
        run(Options(str(tmp_path), text=("a",), model=world[0]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to search for"),
        (["--text", "a", "--k", "0"], "--k must be at least 1"),
        (["--image", "nowhere.png"], "no such file"),
    ],
)
def test_errors(
    world: tuple[str, str, list[Path]], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([world[1], *arguments]) == 1
    assert said in capsys.readouterr().err
    assert main([str(Path(world[1]) / "img_emb"), "--text", "a"]) == 1
    assert "holds no embeddings" in capsys.readouterr().err
