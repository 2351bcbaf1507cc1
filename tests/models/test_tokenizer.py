"""The tokenizer gives OpenAI's ids, which were made once with the original's algorithm and stand here."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastclip.models import Tokenizer
from fastclip.models.tokenizer import EOT_ID, SOT_ID, VOCAB_SIZE
from fastclip.models.vocabulary import write_vocabulary
from tests.models.nasty import NASTY

GOLDEN = json.loads(Path(__file__).with_name("golden_tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: ascii(case["text"])[:30])
def test_ids_are_openais(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]


def test_ids_do_not_depend_on_the_cache(tokenizer):
    for case in reversed(GOLDEN):
        assert tokenizer.encode(case["text"]) == case["ids"] == Tokenizer().encode(case["text"])


def test_rows_are_start_words_end_padding(tokenizer):
    tokens = tokenizer(["a photo of a cat", ""])
    assert tokens.shape == (2, 77) and tokens.dtype == torch.int64
    assert tokens[0, :7].tolist() == [SOT_ID, 320, 1125, 539, 320, 2368, EOT_ID]
    assert tokens[1, :2].tolist() == [SOT_ID, EOT_ID]
    assert not tokens[0, 7:].any() and not tokens[1, 2:].any()


def test_one_text_is_one_row(tokenizer):
    assert torch.equal(tokenizer("a cat"), tokenizer(["a cat"]))
    assert tokenizer([]).shape == (0, 77)


def test_long_text_is_cut_and_keeps_the_end_token(tokenizer):
    tokens = tokenizer("cat " * 100, context_length=8)
    assert tokens.tolist() == [[SOT_ID] + [2368] * 6 + [EOT_ID]]
    assert tokenizer("cat " * 75)[0, -1] == EOT_ID


def test_long_text_is_refused_where_it_must_not_be_cut(tokenizer):
    strict = Tokenizer(context_length=8, truncate=False)
    assert strict("cat " * 6).shape == (1, 8)
    for refuse in (
        lambda: strict(["a", "cat " * 7]),
        lambda: tokenizer(["a", "cat " * 7], 8, truncate=False),
    ):
        with pytest.raises(ValueError, match=r"texts\[1\] has 9 tokens, start and end included, and .* is 8"):
            refuse()
    assert strict("cat " * 7, truncate=True)[0, -1] == EOT_ID


def test_padding_is_chosen():
    tokens = Tokenizer(6, pad_id=EOT_ID)("a cat")
    assert tokens.tolist() == [[SOT_ID, 320, 2368, EOT_ID, EOT_ID, EOT_ID]]
    with pytest.raises(ValueError, match=r"pad_id must lie in \[0, 49408\), got -1"):
        Tokenizer(pad_id=-1)
    with pytest.raises(ValueError, match="cleaning must be 'openai' or 'hf', got 'none'"):
        Tokenizer(cleaning="none")


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("context_length", [77, 16, 12_000])
def test_ids_are_transformers(transformers_tokenizer, context_length):
    tokens = Tokenizer(context_length, cleaning="hf", pad_id=EOT_ID)(NASTY)
    theirs = transformers_tokenizer(
        NASTY, padding="max_length", max_length=context_length, truncation=True, return_tensors="pt"
    )
    for text, own, their in zip(NASTY, tokens, theirs["input_ids"], strict=True):
        assert torch.equal(own, their), ascii(text)[:40]


def test_cleaning_matters_for_some_texts_only():
    """Where OpenAI's and Hugging Face's ids differ: what ftfy repairs, HTML, and upper-case names of tokens."""
    openai, hf = Tokenizer(), Tokenizer(cleaning="hf")
    differing = {text for text in NASTY if openai.encode(text) != hf.encode(text)}
    marks = ("&amp;", "Ã", "\x00", "\u200b", "ﬁ", "‘", "ǅ", "<|")
    assert {mark: sum(mark in text for text in differing) for mark in marks}.keys() == set(marks)
    assert all(any(mark in text for mark in marks) for text in differing)
    for plain in ("a photo of a cat", "漢字 かな 한국어 русский", "😀 👍🏽", "ñandú façade"):
        assert openai.encode(plain) == hf.encode(plain)


def test_ten_thousand_letters_in_one_word(tokenizer):
    word = "abracadabra" * 1000
    assert tokenizer.decode(tokenizer.encode(word)) == word


@given(st.text(alphabet=st.characters(codec="ascii", categories=["Ll"]), min_size=1))
def test_words_round_trip(text):
    tokenizer = Tokenizer()
    assert tokenizer.decode(tokenizer(text, context_length=2 + len(text))[0]) == text


@given(st.text())
def test_any_text_gives_ids_in_range(text):
    tokens = Tokenizer()(text)
    assert tokens[0, 0] == SOT_ID and EOT_ID in tokens
    assert tokens.min() >= 0 and tokens.max() < VOCAB_SIZE


def test_decode_skips_start_and_stops_at_end(tokenizer):
    assert tokenizer.decode(tokenizer("Woman Firefighter: dark skin")[0]) == "woman firefighter : dark skin"


def test_wrong_input_is_named(tokenizer):
    with pytest.raises(TypeError, match=r"texts must be str.*got a int"):
        tokenizer(["a cat", 3])
    with pytest.raises(ValueError, match="context_length must be at least 2"):
        tokenizer("a cat", context_length=1)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 49408\), got 50000"):
        tokenizer.decode([320, 50000])


def test_missing_regex_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(ImportError, match="pip install regex"):
        Tokenizer()
