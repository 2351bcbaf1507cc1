"""What lies at a path is found out, and validation data come from a place of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastclip.data import Augmentation, DataError, open_source
from fastclip.data.emoji import EmojiSource
from fastclip.data.ondisk import RecordSource, retrieval_test
from fastclip.data.opening import detect
from fastclip.data.shapes import ShapesSource
from fastclip.retrieval import retrieval_ranks
from tests.data import formats
from tests.data.formats import Sample, jpeg


def test_every_format_is_recognised(tmp_path: Path) -> None:
    kinds = {
        "tsv": "csv",
        "dataset on disk": "hf",
        "parquet of paths": "parquet",
        "parquet of bytes": "parquet",
    }
    for name, write in formats.FORMATS.items():
        root = tmp_path / name
        root.mkdir()
        place = write(formats.samples(3), root)
        assert detect(place) == kinds.get(name, name)
        if name == "webdataset":
            assert detect(root) == detect(root / "000.tar") == detect(f"{root}/*.tar") == "webdataset"


def test_drawn_pairs_go_by_name(emoji_cache: Path) -> None:
    assert isinstance(open_source("shapes", 32), ShapesSource)
    assert isinstance(open_source(None, 32, cache_dir=emoji_cache), EmojiSource)
    assert isinstance(open_source("emoji", 32, cache_dir=emoji_cache), EmojiSource)
    assert open_source("shapes", 32, shuffled_captions=True).name == "shapes, shuffled captions"


def test_a_folder_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes").mkdir()
    formats.folder(formats.samples(3), tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source("shapes", 16), RecordSource)
    assert isinstance(open_source("shapes", 16, dataset_type="shapes"), ShapesSource)


def test_a_type_that_is_stated_is_believed(tmp_path: Path) -> None:
    formats.folder(formats.samples(5), tmp_path)
    formats.shards(formats.samples(3), tmp_path)
    sizes = {
        kind: len(
            open_source(tmp_path, 16, dataset_type=kind, cache_dir=tmp_path / "cache", held_out_share=0)
        )  # type: ignore[arg-type]
        for kind in ("auto", "webdataset", "folder")
    }
    assert sizes == {"auto": 3, "webdataset": 3, "folder": 5}
    with pytest.raises(ValueError, match=r"dataset_type must be one of auto, .*got 'tar'"):
        open_source(tmp_path, dataset_type="tar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'csv' needs a path"):
        open_source(None, dataset_type="csv")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "none", dataset_type="hf")


def test_validation_data_are_tested_whole_and_never_trained_on(tmp_path: Path) -> None:
    places = []
    for name, wanted in (("train", formats.samples(30)), ("val", formats.samples(47)[30:])):
        (tmp_path / name).mkdir()
        places.append((formats.shards if name == "train" else formats.table)(wanted, tmp_path / name))
    (tmp_path / "val/pictures/00040.jpg").write_bytes(b"")
    source = open_source(places[0], 16, val_data=places[1], cache_dir=tmp_path, shuffled_captions=True)
    assert len(source) == 30
    (test,) = source.held_out()
    assert len(test) == 16 and test.image_labels is None
    whole = formats.samples(47)
    for image, target in zip(test.images, test.target.tolist(), strict=True):
        number = int(test.gallery[target].split()[-1])
        (tmp_path / "one.jpg").write_bytes(whole[number].picture or b"")
        assert torch.equal(image, torch.from_numpy(decode_square(tmp_path / "one.jpg")))
    assert source.skipped == {"empty file": 1}  # of the validation data, and told with the rest
    with pytest.raises(ValueError, match="val_data goes with pairs on disk"):
        open_source("shapes", 32, val_data=places[1])


def decode_square(path: Path):  # type: ignore[no-untyped-def]
    from fastclip.data.picture import decode

    return decode(path, 16)


def test_a_test_knows_all_captions_of_its_pictures() -> None:
    captions = [("a", "b"), ("c",), ("d", "c"), ("e", "a")]
    test = retrieval_test(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), captions)
    assert [test.gallery[t] for t in test.target] == ["a", "c", "d", "e"]
    assert test.image_labels is not None and test.text_labels is not None
    right = test.image_labels[:, None] == test.text_labels
    for row, own in zip(right, captions, strict=True):
        assert set(own) <= {test.gallery[i] for i in row.nonzero().flatten().tolist()}
    # Pictures that share a caption belong together; others do not.
    assert test.image_labels[1] == test.image_labels[2] and test.image_labels[0] == test.image_labels[3]
    assert test.image_labels[0] != test.image_labels[1]
    features = torch.eye(5)[[0, 2, 2, 0]]
    texts = torch.eye(5)[[0, 0, 2, 2, 0]]
    ranks = retrieval_ranks(features, texts, (test.image_labels, test.text_labels))
    assert ranks.image_to_text.tolist() == [1, 1, 1, 1]


def test_crops_follow_the_augmentation_asked_for(tmp_path: Path) -> None:
    place = formats.folder([Sample(f"{i}.jpg", jpeg(i, 64, 64), b"text") for i in range(30)], tmp_path)
    usual, wide = (
        open_source(place, 16, held_out_share=0, augmentation=augmentation).fetch(range(30), seed=0, epoch=0)
        for augmentation in (None, Augmentation(scale=0.2, flip=1.0))
    )
    still = open_source(place, 16, held_out_share=0).fetch(range(30), seed=0, epoch=0, augment=False)
    distances = [(pairs.images.float() - still.images.float()).abs().mean() for pairs in (usual, wide)]
    assert 0 < distances[0] < 0.7 * distances[1]


def test_settings_that_make_no_sense_are_errors(tmp_path: Path) -> None:
    formats.folder(formats.samples(2), tmp_path)
    for options, message in (
        ({"max_bad_share": 2}, r"max_bad_share must lie in \[0, 1\]"),
        ({"caption_key": "a=1,b"}, "caption_key"),
        ({"held_out_share": -1}, "held_out_share"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot tell what"):
        (tmp_path / "a.xyz").write_text("")
        open_source(tmp_path / "a.xyz")
