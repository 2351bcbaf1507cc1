"""The page: all in one file, nothing from outside, and its pictures are there when a browser opens it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastclip.explore import scenes
from fastclip.explore.__main__ import main
from tests.tiny_model import write_model, write_pictures


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Explore a tiny model with drawn shapes."""
    root = tmp_path_factory.mktemp("explore")
    model = write_model(root / "model")
    arguments = [str(model), "--data", "shapes", "--limit", "40", "--sheet", str(root / "sheet.png")]
    arguments += ["--compose", "a red circle + a blue square - a <b>star</b>", "--interpolate", "red | a & b"]
    assert main([*arguments, "--output", str(root / "out" / "space.html")]) == 0
    return root / "out" / "space.html"


def test_nothing_comes_from_outside(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for address in re.findall(r"""(?:src|href|srcset|url)\s*[=(]\s*["']?([^"'\s>)]*)""", text):
        assert address.startswith(("data:image/webp;base64,", "#")), address[:80]
    assert not re.search(r"@import|<link|<iframe|fetch\(|XMLHttpRequest|WebSocket", text)
    assert "default-src 'none'" in text


def test_what_was_asked_for_is_shown_and_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "a &lt;b&gt;star&lt;/b&gt;" in text and "<b>star</b>" not in text
    assert "a &amp; b" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert len(data["plane"]) == len(data["solid"]) == len(data["captions"]) == 40
    plane = torch.tensor(data["plane"])
    apart = (plane[:, None] - plane).abs().amax(-1) + 9 * torch.eye(40)
    assert apart.min() > 0.95  # pictures on the map do not cover each other


def test_figures_lie_beside_the_page(page: Path) -> None:
    figures = json.loads(page.with_suffix(".json").read_text())["figures"]
    assert {"retrieval", "interpolation", "geometry"} <= {figure["section"] for figure in figures}
    assert all(figure["control"] is not None for figure in figures)
    assert (page.parents[1] / "sheet.png").stat().st_size > 10_000


def test_a_browser_shows_the_pictures(page: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        if os.environ.get("FASTCLIP_REQUIRE_BROWSER") == "1":
            pytest.fail("FASTCLIP_REQUIRE_BROWSER=1, but there is no chromium")
        pytest.skip("no chromium here")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-quic", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=8000", "--dump-dom", f"{page.as_uri()}?theme=dark"]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-theme="dark"' in shown
    there = int(
        re.search(r'data-ready="(\d+)"', shown)[1]
    )  # pictures with naturalWidth > 0, counted by the page
    assert there == shown.count("<img ") > 100
    painted = re.search(
        r'data-painted="([\d.]+) ([\d.]+)"', shown
    )  # share of the canvases' pixels that have a colour
    assert all(0.02 < float(share) < 0.95 for share in painted.groups())


def test_a_user_s_own_pairs(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 40, captions=True)
    model = write_model(tmp_path / "model")
    assert (
        main([str(model), "--data", str(tmp_path / "pictures"), "--output", str(tmp_path / "own.html")]) == 0
    )
    assert "red square number" in (tmp_path / "own.html").read_text(encoding="utf-8")


def test_a_run_says_itself_which_pairs_it_was_trained_on(tmp_path: Path) -> None:
    from fastclip.models import load
    from fastclip.train import checkpoint
    from fastclip.train.config import Config, DataConfig

    model = load(write_model(tmp_path / "model")).model
    run = tmp_path / "run"
    checkpoint.save(
        run / "checkpoints",
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        state={"step": 3},
        config=Config(data=DataConfig(train_data="shapes")).to_dict(),
        model_config=model.config.to_dict(),
    )
    assert main([str(run), "--limit", "8"]) == 0
    assert json.loads((run / "space.json").read_text())["data"] == "shapes"
    assert (run / "space.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name pairs to explore with --data"),
        (["--data", "shapes", "--templates", "x"], "--templates must be one of"),
        (["--data", "shapes", "--interpolate", "a"], '"a cat | a dog"'),
        (["--data", "shapes", "--compose", "- a"], "cannot read the sum"),
        (["--data", "nowhere"], "does not exist"),
    ],
)
def test_errors(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_model(tmp_path / "model")), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_chain_puts_alike_next_to_alike() -> None:
    angles = torch.tensor([0.0, 2.0, 0.5, 1.5, 1.0])
    assert scenes._chain(torch.stack([angles.cos(), angles.sin()], 1)) == [0, 2, 4, 3, 1]
