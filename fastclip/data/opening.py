"""Choose the source of pairs from what the user asked for."""

from __future__ import annotations

from pathlib import Path

from fastclip.data.source import PairSource


def open_source(
    path: str | Path | None = None,
    image_size: int = 64,
    *,
    seed: int = 0,
    shuffled_captions: bool = False,
    cache_dir: str | Path | None = None,
    held_out_share: float = 0.05,
    csv_img_key: str | None = None,
    csv_caption_key: str | None = None,
    csv_separator: str | None = None,
) -> PairSource:
    """Open image-text pairs.

    Args:
        path: a folder with caption files, a .csv or .tsv file, "emoji" or "shapes"; None means "emoji".
        image_size: side of the pictures, in pixels.
        seed: chooses what is held out.
        shuffled_captions: caption the training pictures at random; the control.
        cache_dir: where drawn emoji are kept; see ``emoji_art.load_art``.
        held_out_share: share of a user's own pictures kept for validation.
        csv_img_key, csv_caption_key, csv_separator: columns and separator of a table; found out if None.
    """
    named = str(path) if path is not None and not Path(path).exists() else None
    if path is None or named == "emoji":
        from fastclip.data.emoji import EmojiSource

        return EmojiSource(image_size, seed, cache_dir, shuffled_captions)
    if named == "shapes":
        from fastclip.data.shapes import ShapesSource

        return ShapesSource(image_size, seed=seed, shuffled_captions=shuffled_captions)
    from fastclip.data.folder import FolderSource

    return FolderSource(
        path,
        image_size,
        seed,
        held_out_share,
        csv_img_key,
        csv_caption_key,
        csv_separator,
        shuffled_captions,
    )
