"""Tokenizers of models that do not have CLIP's: SigLIP's, and those of towers from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import TextConfig
from .tokenizer import VOCAB_SIZE, Tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tokenizer_config.json")


class ForeignTokenizer:
    """Tokenize with the vocabulary in a Hugging Face folder, by way of transformers.

    Rows are as long as the model's context, padded, and cut where a text is longer, as SigLIP was trained.

    Args:
        folder: of the model.
        context_length: tokens per row.
    """

    def __init__(self, folder: Path, context_length: int) -> None:
        self.folder, self.context_length = folder, context_length
        self._tokenizer: Any = None

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize B texts to (B, context_length) int64.

        Raises:
            FileNotFoundError: the folder has no vocabulary.
            ImportError: transformers is not installed.
        """
        if self._tokenizer is None:
            if not any((self.folder / name).is_file() for name in _FILES):
                raise FileNotFoundError(
                    f"{self.folder} has no vocabulary ({', '.join(_FILES)}), and the model does not have CLIP's; "
                    "put its tokenizer's files there, or give the model ids that were made elsewhere"
                )
            try:
                from transformers import AutoTokenizer
            except ImportError as error:
                raise ImportError(
                    f"the tokenizer of {self.folder} needs: pip install transformers"
                ) from error
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return rows["input_ids"]


def find_tokenizer(path: Path, text: TextConfig) -> Tokenizer | ForeignTokenizer:
    """Return the tokenizer that goes with a text tower: CLIP's where the vocabulary has its size."""
    if text.vocab_size == VOCAB_SIZE:
        return Tokenizer(text.context_length)
    return ForeignTokenizer(path if path.is_dir() else path.parent, text.context_length)
