"""Read the Unicode names of emoji as compositions: a base ("woman firefighter") and skin tones.

Three things hang on a name besides the caption. The *base* and the tones are what an unseen composition
recombines. The *concept* groups everything that is one drawing but for tone, gender and facing
("firefighter", "man firefighter: dark skin tone"), because a test picture whose sibling was trained on tests
nothing. And a picture may be mirrored in training only if its name stays true.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

Codes = tuple[int, ...]


@dataclass(frozen=True)
class EmojiName:
    """Hold what a name says."""

    base: str  #: the name without its tones
    tones: tuple[int, ...]  #: indices into TONES: none, one, or two for a pair of people
    concept: Codes  #: code points without tone, gender and facing; equal for all variants of one drawing
    may_flip: bool  #: whether the mirrored picture has the same name

    def __str__(self) -> str:
        if not self.tones:
            return self.base
        tones = ", ".join(f"{TONES[tone]} skin tone" for tone in self.tones)
        return f"{self.base}{', ' if ':' in self.base else ': '}{tones}"


def emoji_names() -> dict[Codes, EmojiName]:
    """Return the name of every emoji by its code points, variation selectors left out."""
    import emoji

    raw: dict[Codes, str] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        codes = tuple(ord(char) for char in text if ord(char) != _VARIATION_SELECTOR)
        raw.setdefault(codes, entry["en"].strip(":").replace("_", " "))

    parsed = {codes: _parse(codes, name) for codes, name in raw.items()}
    # Some toned pairs are spelled as two people joined, their untoned form as one code point: the shortest
    # spelling of a base names its concept.
    shortest: dict[str, Codes] = {}
    for codes, (base, _) in parsed.items():
        shortest[base] = min(shortest.get(base, codes), codes, key=lambda spelling: (len(spelling), spelling))
    concepts = {base: _concept(codes) for base, codes in shortest.items()}
    turning = {concepts[parsed[codes][0]] for codes in raw if _FACING_RIGHT in codes}

    def may_flip(base: str, tones: tuple[int, ...]) -> bool:
        # Two tones are named from left to right, and "walking" is told from "walking facing right" by its
        # side alone.
        sided = len(tones) > 1 or concepts[base] in turning or not _SIDED.isdisjoint(_WORD.findall(base))
        return not sided and shortest[base][0] >= _FIRST_PICTURE

    return {
        codes: EmojiName(base, tones, concepts[base], may_flip(base, tones))
        for codes, (base, tones) in parsed.items()
    }


_VARIATION_SELECTOR = 0xFE0F
_JOINER = 0x200D
_FACING_RIGHT = 0x27A1
_TONE_CODES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)  # two of these are a country's flag
_BLACK_FLAG, _TAG_END = 0x1F3F4, 0xE007F  # what starts and ends a region's flag

_TONE = re.compile(r" ?\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_PEOPLE = r"(?:person|man|woman|adult|girl|boy|child)"
_REWRITES = (
    (re.compile(r"^(man|woman|person) bald$"), r"bald \1"),
    (re.compile(r"^(man|woman|person) ((?:red|curly|white|blond) hair|beard)$"), r"\1 with \2"),
    (re.compile(rf"^(couple with heart|kiss|family) ({_PEOPLE}(?: {_PEOPLE})*)$"), None),
)


def _parse(codes: Codes, name: str) -> tuple[str, tuple[int, ...]]:
    """Return the base and the tones of a name."""
    tones = tuple(TONES.index(tone) for tone in _TONE.findall(name))
    base = _TONE.sub("", name)
    if not base:
        return name, ()  # the five tones' own swatches
    for pattern, replacement in _REWRITES:
        if replacement:
            base = pattern.sub(replacement, base)
        elif match := pattern.match(base):
            base = f"{match[1]}: {', '.join(match[2].split())}"
    country, region = codes[0] in _REGIONAL, codes[0] == _BLACK_FLAG and codes[-1] == _TAG_END
    if (country and len(codes) == 2) or region:
        base = f"flag: {base}"
    return base, tones


# One drawing in two or three genders, where Unicode gave each its own code point.
_GENDERED = {
    0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1,  # man, woman: person
    0x1F466: 0x1F9D2, 0x1F467: 0x1F9D2,  # boy, girl: child
    0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3,  # old man, old woman: older person
    0x1F478: 0x1F934, 0x1FAC5: 0x1F934,  # princess, person with crown: prince
    0x1F936: 0x1F385,  # Mrs. Claus: Santa Claus
    0x1F57A: 0x1F483,  # man dancing: woman dancing
    0x1F930: 0x1FAC4, 0x1FAC3: 0x1FAC4,  # pregnant woman, man: person
    0x1F46B: 0x1F46D, 0x1F46C: 0x1F46D,  # holding hands
}  # fmt: skip
_ALIASES = {
    (0x1F9D1, _JOINER, 0x1F384): (0x1F385,),  # Mx Claus
    (0x1F9D1, _JOINER, 0x1F91D, _JOINER, 0x1F9D1): (0x1F46D,),  # people holding hands
    (0x1F9D1, _JOINER, 0x2764, _JOINER, 0x1F9D1): (0x1F491,),  # couple with heart
    (0x1F9D1, _JOINER, 0x2764, _JOINER, 0x1F48B, _JOINER, 0x1F9D1): (0x1F48F,),  # kiss
    (0x1F471,): (0x1F9D1, _JOINER, 0x1F471),
}
_SUFFIXES = ((_JOINER, 0x2640), (_JOINER, 0x2642), (_JOINER, _FACING_RIGHT))


def _concept(codes: Codes) -> Codes:
    """Return the code points without tone, gender and facing."""
    kept = tuple(_GENDERED.get(code, code) for code in codes if code not in _TONE_CODES) or codes
    stripped = True
    while stripped:
        stripped = False
        for suffix in _SUFFIXES:
            if len(kept) > 2 and kept[-2:] == suffix:
                kept, stripped = kept[:-2], True
    return _ALIASES.get(kept, kept)


# Words of names that a mirror makes false: they say a side or a sense of turning, or the picture carries
# writing, a direction in time or a country. Drawings before _FIRST_PICTURE are mostly signs and letters.
_FIRST_PICTURE = 0x1F300
_WORD = re.compile(r"[^\s:,-]+")
_SIDED = frozenset(
    word
    for line in (
        "left leftwards right rightwards facing pointing arrow index tilted clockwise counterclockwise",
        "clock o’clock thirty stopwatch watch timer moon crescent thermometer compass slider knobs meter",
        "forward fast reverse play pause record eject next last repeat shuffle vibration chart",
        "flag flags map globe Japanese Tokyo tanabata trigram zodiac hamsa nazar",
        "infinity om atom link dna cyclone",
        "button keycap letter letters input symbol symbols sign mark points numbers math",
        "ON! OK NO SOS ABC ATM ZZZ id identification badge label placard",
        "speech thought bubble anger abacus ruler",
        "dollar euro pound yen banknote money currency receipt credit ticket tickets passport customs slot",
        "newspaper page paper scroll ledger notebook book books memo bookmark clipboard calendar date",
        "envelope mail mailbox postbox post package musical score note notes",
        "cards joker mahjong die 8 medal trophy",
        "computer laptop desktop keyboard television pager fax telephone mobile phone camera",
        "projector clapper film videocassette video optical dvd floppy printer radio ray low",
        "cinema teacher school hospital bank hotel store love restroom room closet potable elevator",
        "traffic stop police ambulance engine taxi prohibited construction barrier",
    )
    for word in line.split()
)
