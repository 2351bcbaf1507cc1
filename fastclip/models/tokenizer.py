"""CLIP's byte-pair tokenizer: the same ids as OpenAI's, faster.

A text is cleaned, lower-cased and cut into words; each word's UTF-8 bytes are merged pair by pair, best rank
first.

    ids 0..255          the bytes, printable ones first
    ids 256..511        the same bytes where they end a word
    ids 512..49405      the merges, in rank order
    ids 49406, 49407    start and end of text

Three things make it fast: words are cached with their ids, plain ASCII skips the repair of broken Unicode
(which would not change it), and a merge looks at its neighbours only.
"""

from __future__ import annotations

import gzip
import heapq
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

SOT_ID = 49406
EOT_ID = 49407
VOCAB_SIZE = 49408

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
_SOT, _EOT = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_SPECIAL = f"{re.escape(_SOT)}|{re.escape(_EOT)}"
# Neither ftfy nor HTML unescaping changes such a text: printable ASCII and line breaks, no "&".
_PLAIN = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_CACHED_WORDS = 1 << 18  # the cache stops growing here, at about 50 MiB


class Tokenizer:
    """Turn texts into CLIP token ids, and back.

    Args:
        context_length: tokens per row, start and end included, at least 2.
        truncate: cut a text that is too long, behind which the end token still stands; False refuses it.
        cleaning: "openai" repairs broken Unicode (by ftfy) and resolves HTML escapes first, as OpenAI and open_clip
            do; "hf" composes characters only (NFC), as Hugging Face's CLIPTokenizer does. Ids are the
            same for ordinary text; curly quotes, ligatures, full-width letters, "&amp;" and control characters
            differ. Both take <|startoftext|> and <|endoftext|> in a text for the tokens they name.
        pad_id: what rows are filled up with behind the end token. OpenAI and open_clip have 0, Hugging Face's CLIP
            the end token; a causal tower's pooled output does not depend on it, its token outputs do.

    Raises:
        ValueError: an argument is out of range.
        ImportError: the regex package is missing.
    """

    sot_id = SOT_ID
    eot_id = EOT_ID
    vocab_size = VOCAB_SIZE

    def __init__(
        self, context_length: int = 77, *, truncate: bool = True, cleaning: str = "openai", pad_id: int = 0
    ) -> None:
        if cleaning not in ("openai", "hf"):
            raise ValueError(f"cleaning must be 'openai' or 'hf', got {cleaning!r}")
        if not 0 <= pad_id < VOCAB_SIZE:
            raise ValueError(f"pad_id must lie in [0, {VOCAB_SIZE}), got {pad_id}")
        self.context_length, self.truncate = context_length, truncate
        self.cleaning, self.pad_id = cleaning, pad_id
        try:
            import regex  # knows Unicode categories (\p{L}), which the standard library's re does not
        except ImportError as error:
            raise ImportError("Tokenizer needs the regex package: pip install regex ftfy") from error
        if cleaning == "openai":
            # Text is lower-case by then, but OpenAI's pattern ignores case, and that moves some letters (U+017F,
            # U+0345) between the classes.
            self._find_words = regex.compile(f"{_SPECIAL}|{_WORDS}", regex.IGNORECASE).findall
        else:
            self._find_words = regex.compile(_WORDS).findall
        self._byte_ids, self._merges, self._token_bytes = _load_table()
        self._cache: dict[str, list[int]] = {_SOT: [SOT_ID], _EOT: [EOT_ID]}

    def __call__(
        self, texts: str | Sequence[str], context_length: int | None = None, *, truncate: bool | None = None
    ) -> Tensor:
        """Tokenize texts into rows of: start, words, end, padding.

        Args:
            texts: one text, or a sequence of B texts.
            context_length, truncate: in place of the tokenizer's own.

        Returns:
            (B, context_length) int64, on the CPU.

        Raises:
            TypeError: an entry of texts is not a string.
            ValueError: context_length is below 2, or a text is too long and must not be cut.
        """
        length = self.context_length if context_length is None else context_length
        cut = self.truncate if truncate is None else truncate
        if length < 2:
            raise ValueError(f"context_length must be at least 2 (start and end token), got {length}")
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.full((len(texts), length), self.pad_id, dtype=torch.int64)
        for i, (row, text) in enumerate(zip(tokens.numpy(), texts, strict=True)):
            ids = self.encode(text)
            if len(ids) + 2 > length and not cut:
                raise ValueError(
                    f"texts[{i}] has {len(ids) + 2} tokens, start and end included, and context_length is {length}: "
                    f"shorten {text[:40]!r}…, or pass truncate=True"
                )
            ids = ids[: length - 2]
            row[: len(ids) + 2] = [SOT_ID, *ids, EOT_ID]
        return tokens

    def encode(self, text: str) -> list[int]:
        """List the ids of one text, however long, without start and end token."""
        if not isinstance(text, str):
            raise TypeError(f"texts must be str or a sequence of str, got a {type(text).__name__}")
        ids: list[int] = []
        for word in self._words(text):
            ids.extend(self._cache.get(word) or self._encode_word(word))
        return ids

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """Write one row of ids as lower-case text, from after the start token up to the end token.

        Words come back one space apart, punctuation included: "a cat's" becomes "a cat 's".

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        text = b""
        for token in tokens.tolist() if isinstance(tokens, Tensor) else tokens:
            if token == EOT_ID:
                break
            if not 0 <= token < VOCAB_SIZE:
                raise ValueError(f"tokens must lie in [0, {VOCAB_SIZE}), got {token}")
            if token != SOT_ID:
                text += self._token_bytes[token]
        return text.decode("utf-8", errors="replace").strip()

    def _words(self, text: str) -> Iterable[str]:
        if self.cleaning == "openai":
            return self._find_words(_clean(text))
        parts = re.split(f"({_SPECIAL})", text)  # every second one is special
        return (
            word
            for i, part in enumerate(parts)
            for word in ([part] if i % 2 else self._find_words(_compose(part)))
        )

    def _encode_word(self, word: str) -> list[int]:
        ids = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        ids[-1] += 256
        ids = _merge(ids, self._merges)
        if len(self._cache) < _CACHED_WORDS:
            self._cache[word] = ids
        return ids


def _clean(text: str) -> str:
    """Repair broken Unicode and HTML escapes, where there can be any, and lower-case."""
    if _PLAIN.fullmatch(text) is None:
        import ftfy

        # Twice, as OpenAI does: captions from the web are often escaped twice ("&amp;lt;").
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


def _compose(text: str) -> str:
    """Compose characters with their accents and lower-case each by itself, as Hugging Face does."""
    return "".join(letter.lower() for letter in unicodedata.normalize("NFC", text))


def _merge(ids: list[int], merges: dict[tuple[int, int], int]) -> list[int]:
    """Merge neighbours until no pair is in the table: lowest merged id first, leftmost first.

    A merged id is also the merge's rank, and both its parts rank before it; so taking pairs one by one from a
    heap equals sweeping the word once per rank, in O(n log n) where the sweeps cost O(n²).
    """
    ids = list(ids)
    right = list(range(1, len(ids) + 1))  # neighbours of each place that still holds a symbol
    left = list(range(-1, len(ids) - 1))
    heap = [(merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        merged, i = heapq.heappop(heap)
        j = right[i]
        if ids[i] < 0 or j == len(ids) or merges.get((ids[i], ids[j])) != merged:
            continue  # a better merge has taken one of the two
        ids[i], ids[j] = merged, -1
        right[i] = right[j]
        if right[i] < len(ids):
            left[right[i]] = i
        for a, b in ((left[i], i), (i, right[i])):
            if a >= 0 and b < len(ids) and (ids[a], ids[b]) in merges:
                heapq.heappush(heap, (merges[ids[a], ids[b]], a))
    return [token for token in ids if token >= 0]


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def _bytes_in_order() -> list[int]:
    """List the 256 bytes in the order of their ids."""
    return _PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE]


def letters() -> list[str]:
    """List the visible letters that the table writes for bytes, by id: the others are written from U+0100 on."""
    others = 256 - len(_PRINTABLE)
    return [chr(byte) for byte in _PRINTABLE] + [chr(0x100 + i) for i in range(others)]


@lru_cache(maxsize=1)
def _load_table() -> tuple[dict[int, int], dict[tuple[int, int], int], list[bytes]]:
    """Read the merges: byte → id, (left id, right id) → merged id, and id → bytes (a space ends a word)."""
    ordered, single = _bytes_in_order(), letters()
    ids = {symbol: i for i, symbol in enumerate(single + [letter + "</w>" for letter in single])}
    token_bytes = [bytes([byte]) for byte in ordered] + [bytes([byte, 0x20]) for byte in ordered]
    merges: dict[tuple[int, int], int] = {}
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    for line in lines[1 : SOT_ID - len(ids) + 1]:  # the first line is a comment
        first, second = line.split()
        pair = ids[first], ids[second]
        merges[pair] = ids[first + second] = len(token_bytes)
        token_bytes.append(token_bytes[pair[0]] + token_bytes[pair[1]])
    return {byte: i for i, byte in enumerate(ordered)}, merges, token_bytes
