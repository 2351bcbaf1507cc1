from __future__ import annotations

import pytest

from fastclip.data.emoji_names import EmojiName, emoji_names

NAMES = emoji_names()


def named(emoji: str) -> EmojiName:
    return NAMES[tuple(ord(char) for char in emoji if char != "\ufe0f")]


@pytest.mark.parametrize(
    ("emoji", "base", "tones", "caption"),
    [
        ("🍋", "lemon", (), "lemon"),
        ("👩🏾‍🚒", "woman firefighter", (3,), "woman firefighter: medium-dark skin tone"),
        ("👋🏼", "waving hand", (1,), "waving hand: medium-light skin tone"),
        ("🧑🏿‍🦰", "person with red hair", (4,), "person with red hair: dark skin tone"),
        ("👨‍🦲", "bald man", (), "bald man"),
        ("🫱🏻‍🫲🏿", "handshake", (0, 4), "handshake: light skin tone, dark skin tone"),
        (
            "👩🏽‍❤️‍👨🏽",
            "couple with heart: woman, man",
            (2,),
            "couple with heart: woman, man, medium skin tone",
        ),
        ("👨‍👩‍👧", "family: man, woman, girl", (), "family: man, woman, girl"),
        ("🇳🇴", "flag: Norway", (), "flag: Norway"),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", "flag: Wales", (), "flag: Wales"),
        ("🏿", "dark skin tone", (), "dark skin tone"),
    ],
)
def test_a_name_is_read_as_base_and_tones(
    emoji: str, base: str, tones: tuple[int, ...], caption: str
) -> None:
    name = named(emoji)
    assert (name.base, name.tones, str(name)) == (base, tones, caption)


def test_names_are_unique() -> None:
    assert len({str(name) for name in NAMES.values()}) == len(NAMES)


@pytest.mark.parametrize(
    "variants",
    [
        "🧑‍🚒 👩‍🚒 👨‍🚒 🧑🏿‍🚒 👩🏻‍🚒",
        "🧑 👩 👨 👩🏽",
        "🧒 👦 👧🏿",
        "🧓 👴 👵🏿",
        "🫅 🤴 👸🏻",
        "🎅 🤶🏿 🧑‍🎄 🧑🏽‍🎄",
        "💃 🕺🏾",
        "🫄 🤰 🫃🏿",
        "🚶 🚶‍♀️ 🚶🏿‍♂️ 🚶‍➡️ 🚶🏻‍♀️‍➡️",
        "👯 👯‍♀️ 👯‍♂️",
        "👫 👬 👭 🧑‍🤝‍🧑 👬🏿 👩🏻‍🤝‍👨🏿 🧑🏽‍🤝‍🧑🏻",
        "💏 👩‍❤️‍💋‍👨 👨🏿‍❤️‍💋‍👨🏻 💏🏽 🧑🏻‍❤️‍💋‍🧑🏿",
        "💑 👩‍❤️‍👩 👨🏿‍❤️‍👨🏻 🧑🏻‍❤️‍🧑🏿",
        "🤝 🤝🏽 🫱🏻‍🫲🏿",
        "👱 👱‍♀️ 👱🏿‍♂️",
    ],
)
def test_variants_of_a_drawing_are_one_concept(variants: str) -> None:
    assert len({named(emoji).concept for emoji in variants.split()}) == 1


@pytest.mark.parametrize(
    "different", ["🧑‍🚒 🧑‍🍳 🧑 🧒 🧓", "🤱 🧑‍🍼", "🚶 🏃 🧍 🧎", "👋 🤚 ✋", "💏 💑", "👨‍🦰 👨‍🦳 👨"]
)
def test_different_drawings_are_different_concepts(different: str) -> None:
    emoji = different.split()
    assert len({named(one).concept for one in emoji}) == len(emoji)


PLAIN = "🍋 🐱 👋 👩🏾‍🚒 🏠 🚲 🎸 👩‍❤️‍👨 🌵"
SIDED = """
👈 👉 ⬅️ ➡️ 🤛 🤜 🫱 🫲 🔃 🔄 🕗 🕝 🌓 🌙 🇳🇴 🏴󠁧󠁢󠁷󠁬󠁳󠁿 📈 📉 🆗 🆎 🔤 1️⃣ 💲 💶 📅 🔎 🔍 ♌ ™️ ❓
🚶 🚶‍➡️ 🏃🏿‍♀️ 🫱🏻‍🫲🏿 👩🏻‍❤️‍👨🏿 🎱 🏧 🚏 🗾 💯 👨‍🏫 🔙 🔜 ➕
"""


@pytest.mark.parametrize("emoji", PLAIN.split())
def test_a_picture_without_sides_may_be_mirrored(emoji: str) -> None:
    assert named(emoji).may_flip


@pytest.mark.parametrize("emoji", SIDED.split())
def test_a_picture_whose_name_a_mirror_makes_false_is_never_mirrored(emoji: str) -> None:
    assert not named(emoji).may_flip
