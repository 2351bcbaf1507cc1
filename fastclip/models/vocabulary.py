"""The tokenizer's files as Hugging Face's CLIPTokenizer reads them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from .tokenizer import EOT_ID, MERGES_FILE, SOT_ID, letters

_SOT, _EOT = "<|startoftext|>", "<|endoftext|>"


def write_vocabulary(folder: Path, context_length: int = 77) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of CLIP's vocabulary to a folder that exists."""
    single = letters()
    count = SOT_ID - 2 * len(single)
    text = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8")
    merges = text.split("\n")[1 : count + 1]  # the first line is a comment
    symbols = [*single, *(letter + "</w>" for letter in single), *("".join(line.split()) for line in merges)]
    ids = {symbol: i for i, symbol in enumerate(symbols)} | {_SOT: SOT_ID, _EOT: EOT_ID}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": _SOT,
        "eos_token": _EOT,
        "unk_token": _EOT,
        "pad_token": _EOT,
        "model_max_length": context_length,
        "do_lower_case": True,
    }
    for name, document in (("vocab.json", ids), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
