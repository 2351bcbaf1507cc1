"""The benchmark of reading pairs: both pipelines give the same kind of batches, and results are written down."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data


def test_the_pictures_have_detail_at_every_scale() -> None:
    with Image.open(io.BytesIO(data.picture(160, 120, 0))) as picture:
        pixels = np.asarray(picture.convert("L")).astype(float)
    assert pixels.shape == (120, 160) and pixels.std() > 20
    fine = pixels - np.asarray(Image.fromarray(pixels).resize((40, 30)).resize((160, 120)))
    assert 1 < fine.std() < pixels.std() / 2


def test_crops_keep_nine_tenths_inside_the_picture() -> None:
    for _ in range(200):
        left, upper, across, down = data._crop(300, 200)
        assert left >= 0 and upper >= 0 and left + across <= 300 and upper + down <= 200
        assert across * down >= 0.89 * 300 * 200


def test_every_pipeline_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SIZES", ((40, 30),))
    monkeypatch.setattr(data, "BATCH", 8)
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    wanted = ["--side", "16", "--pictures", "12", "--turns", "1", "--seconds", "0.05", "--cores", "1"]
    try:
        assert data.main([*wanted, "--output", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)
    rows = json.loads((tmp_path / "data-cpu.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == [
        "DataLoader + Pillow",
        "fastclip, folder",
        "fastclip, shards",
    ]
    assert rows[0]["ratio"] == 1 and all(row["images_per_second"] > 0 for row in rows)
