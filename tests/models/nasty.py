"""Texts that tokenizers disagree on when they are careless."""

from __future__ import annotations

NASTY = [
    "",
    " ",
    "\n\t \r\n",
    "a photo of a cat",
    "  two   spaces\tand\na break  ",
    "it's they're I'M we'll you'd don't",
    "ÀÉÎÕÜ ñandú façade Straße İstanbul ǅ ſ",
    "cafe\u0301 re\u0301sume\u0301",  # combining accents
    "漢字 かな 한국어 русский ελληνικά עברית العربية हिन्दी ไทย",
    "😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ 1️⃣",
    "&amp; &lt;b&gt; &amp;amp;lt; &#39;x&#39; &nbsp;y &copy; &notanentity;",
    "schÃ¶n â€œquotedâ€\x9d",  # mojibake
    "zero\u200bwidth\u200djoiner\ufeffbom soft\u00adhyphen",
    "nul\x00bell\x07esc\x1b[31mred del\x7f nel\x85",
    "line\u2028para\u2029sep",
    "ﬁne ﬂow Ⅷ ½ ² ㎏ ＦＵＬＬｗｉｄｔｈ",
    "‘curly’ “quotes” — dash … ellipsis",
    "<|startoftext|> inside <|endoftext|> text",
    "<|ENDOFTEXT|> upper",
    "https://example.com/a?b=c&d=e#f user@example.com #tag @name",
    "1234567890 3.14159 1,000,000 0x1F 10^-5",
    "!!!???... ---___ ###$$$%%% (([[{{}}]]))",
    "\ud83d lone surrogate".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "x" * 10_000,
    "word " * 2_000,
    "日" * 10_000,
    "aA" * 5_000,
    "a" * 76 + " b",
    "\U0010ffff \ue000 private",
    "𝕗𝕒𝕟𝕔𝕪 𝓈𝒸𝓇𝒾𝓅𝓉",
]


def names_a_token(text: str) -> bool:
    """Tell whether a text has the name of a start or end token in it, by which the libraries do not mean the same."""
    return "<|startoftext|>" in text.lower() or "<|endoftext|>" in text.lower()
