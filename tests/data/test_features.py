"""Precomputed embeddings: rows, captions, parts that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastclip.data import DataError, open_source
from fastclip.data.features import FeatureSource
from fastclip.train.feed import Cursor, batches


def write(root: Path, sizes: dict[int, int], *, texts: bool = True, captions: bool = True) -> Path:
    """Write parts by number and size; row r of part p holds 100·p + r, its caption says so."""
    for kind in ("img_emb", *["text_emb"] * texts, *["metadata"] * captions):
        (root / kind).mkdir()
    for part, size in sizes.items():
        rows = (100 * part + np.arange(size, dtype=np.float16))[:, None]
        np.save(root / f"img_emb/img_emb_{part}.npy", rows + np.zeros((1, 6), np.float16))
        if texts:
            np.save(
                root / f"text_emb/text_emb_{part}.npy",
                -rows.astype(np.float32) + np.zeros((1, 4), np.float32),
            )
        if captions:
            pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            said = pa.table(
                {"image_path": ["x"] * size, "caption": [f"row {100 * part + r}" for r in range(size)]}
            )
            pq.write_table(said, root / f"metadata/metadata_{part}.parquet")
    return root


def test_rows_go_with_their_texts(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {0: 9, 10: 5, 2: 7}), cache_dir=tmp_path / "cache", held_out_share=0)
    assert isinstance(source, FeatureSource) and len(source) == 21
    assert (source.image_width, source.text_width) == (6, 4)
    pairs = source.fetch(range(21), seed=0, epoch=0)
    assert pairs.images.dtype == torch.float32 and pairs.images.shape == (21, 6)
    assert pairs.text_features is not None and torch.equal(-pairs.images[:, :4], pairs.text_features)
    # Parts follow each other by number, not by letter.
    assert pairs.captions[9:17] == [f"row {n}" for n in (*range(200, 207), 1000)]
    assert pairs.captions == [f"row {int(row)}" for row in pairs.images[:, 0]]


def test_training_and_validation_divide_the_rows(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {0: 50}), cache_dir=tmp_path / "cache", held_out_share=0.2)
    (test,) = source.held_out()
    assert len(source) == 40 and len(test) == 10
    assert test.gallery_features is not None and test.gallery_features.shape == (10, 4)
    for image, target in zip(test.images, test.target.tolist(), strict=True):
        assert test.gallery[target] == f"row {int(image[0])}"
        assert torch.equal(test.gallery_features[target], -image[:4])
    trained = source.fetch(range(40), seed=0, epoch=0).captions
    assert not set(trained) & set(test.gallery)
    (all_of_them,) = open_source(tmp_path, cache_dir=tmp_path / "cache", held_out_share=1).held_out()
    assert len(all_of_them) == 50


def test_captions_or_texts_alone_will_do(tmp_path: Path) -> None:
    for name in ("texts", "captions", "nothing"):
        (tmp_path / name).mkdir()
    only_texts = open_source(write(tmp_path / "texts", {0: 30}, captions=False), held_out_share=0.1)
    pairs = only_texts.fetch(range(27), seed=0, epoch=0)
    assert set(pairs.captions) == {""} and len(set(pairs.labels.tolist())) == 27
    assert only_texts.held_out()[0].gallery[0].startswith("row ")
    only_captions = open_source(
        write(tmp_path / "captions", {0: 3}, texts=False), cache_dir=tmp_path, held_out_share=0
    )
    pairs = only_captions.fetch([2], seed=0, epoch=0)
    assert pairs.captions == ["row 2"] and pairs.text_features is None
    with pytest.raises(DataError, match="neither text_emb"):
        open_source(write(tmp_path / "nothing", {0: 3}, texts=False, captions=False))


def test_the_control_has_the_same_texts_on_other_rows(tmp_path: Path) -> None:
    write(tmp_path, {0: 40})
    control = open_source(tmp_path, cache_dir=tmp_path / "cache", held_out_share=0.1, shuffled_captions=True)
    pairs = control.fetch(range(36), seed=0, epoch=0)
    assert pairs.text_features is not None
    said = [int(caption.split()[1]) for caption in pairs.captions]
    assert said == (-pairs.text_features[:, 0]).int().tolist()
    own = pairs.images[:, 0].int().tolist()
    assert sorted(said) == sorted(own) and sum(a == b for a, b in zip(said, own, strict=True)) < 6


def test_rows_that_are_not_finite_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, {0: 60})
    for kind, row in (("img_emb", 3), ("text_emb", 8)):
        rows = np.load(tmp_path / f"{kind}/{kind}_0.npy")
        rows[row, 1] = np.nan if row == 3 else np.inf
        np.save(tmp_path / f"{kind}/{kind}_0.npy", rows)
    source = open_source(tmp_path, cache_dir=tmp_path / "cache", held_out_share=0)
    for batch in batches(source, 10, seed=0, start=Cursor(), count=12, workers=1):
        assert len(batch.pairs) == 10 and batch.pairs.images.isfinite().all()
        assert batch.pairs.text_features is not None and batch.pairs.text_features.isfinite().all()
    assert source.skipped == {"not finite": 2}
    assert f"{tmp_path}/img_emb/img_emb_0.npy, row 3" in source.skipped_files


def test_parts_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(range(8), 4))
    images = tmp_path / "img_emb"
    whole = (images / "img_emb_1.npy").read_bytes()
    (images / "img_emb_1.npy").write_bytes(whole[:-10])
    (images / "img_emb_2.npy").write_bytes(b"")
    np.save(images / "img_emb_3.npy", np.array([object()], dtype=object), allow_pickle=True)
    np.save(images / "img_emb_4.npy", np.zeros((4, 7), np.float32))
    np.save(images / "img_emb_5.npy", np.zeros((5, 6), np.float32))
    (tmp_path / "text_emb/text_emb_6.npy").unlink()
    (tmp_path / "metadata/metadata_7.parquet").write_bytes(b"nothing")
    source = open_source(tmp_path, cache_dir=tmp_path / "cache", held_out_share=0)
    assert len(source) == 4
    assert source.skipped == {
        "damaged .npy file": 3,
        "another width than the first part": 1,
        "files of one part have different numbers of rows": 1,
        "a part lacks its texts": 1,
        "damaged table": 1,
    }


def test_a_folder_without_a_usable_part_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    with pytest.raises(DataError, match=r"no img_emb/\*\.npy"):
        open_source(tmp_path)
    write_root = tmp_path / "other"
    write_root.mkdir()
    write(write_root, {0: 2}, captions=False)
    (write_root / "text_emb/text_emb_0.npy").unlink()
    (write_root / "text_emb/text_emb_9.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"no part of .* can be used: a part lacks its texts"):
        open_source(write_root)
