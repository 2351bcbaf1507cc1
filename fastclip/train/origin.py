"""Remember which data a run is trained on, to tell when it is resumed on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastclip.data.source import PairSource


def origin(source: PairSource) -> dict[str, Any]:
    """Return what a checkpoint notes of the training data: name, kind of source, number of pairs."""
    return {"name": source.name, "kind": type(source).__name__, "pairs": len(source)}


def changed(saved: Mapping[str, Any] | None, source: PairSource) -> str | None:
    """Return in a sentence how the data differ from those of a checkpoint, and what follows; None if they do not.

    Args:
        saved: `origin` of the data then; None in checkpoints that do not know it, of which nothing is said.
        source: the data now.
    """
    now = origin(source)
    if saved is None or dict(saved) == now:
        return None
    before, here = (f"{data['name']} ({data['pairs']:,} pairs, {data['kind']})" for data in (saved, now))
    if saved["pairs"] == now["pairs"]:
        follows = (
            "The run goes on as if they were the same pairs in another place or format; if not, its place in the data "
            "means nothing"
        )
    else:
        follows = (
            "The order of an epoch is another one now, so the place in it cannot be exact: some pairs of this epoch "
            "will come twice and some not at all; its length, and the learning rate with it, may change"
        )
    return f"the checkpoint was trained on {before}, this run goes on with {here}. {follows}"
