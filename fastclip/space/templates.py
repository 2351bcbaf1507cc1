"""Sets of prompt templates: sentences around a class name, whose mean is a better text for it than the bare name.

The idea is Radford et al.'s (2021, section 3.1.4): a model trained on sentences knows names inside sentences, and the
mean over many sentences is free of what any one of them says besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: Templates by the name of their set; {} is the class.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "general": (
        "{}",
        "a picture of {}",
        "this picture shows {}",
        "{}, seen from close by",
        "{}, seen from far away",
        "a small picture of {}",
        "a sharp picture of {}",
        "a blurred picture of {}",
        "one example of {}",
        "several pictures of {}",
        "{} in the middle of the picture",
        "{} on a plain background",
    ),
    "photos": (
        "a photograph of a {}",
        "a close photograph of a {}",
        "a {} photographed outdoors",
        "a {} photographed indoors",
        "a bright photograph of a {}",
        "a dim photograph of a {}",
        "a grainy snapshot of a {}",
        "a black and white photograph of a {}",
        "a photograph in which a {} is partly hidden",
        "a photograph of a large {}",
        "a photograph of a small {}",
        "somebody's snapshot of the {}",
    ),
    "drawings": ("{}", "a drawing of {}", "an emoji of {}"),
}


def read_templates(named: str) -> tuple[str, ...]:
    """Return a set of `TEMPLATES` by its name, or the lines of a file.

    Raises:
        ValueError: neither, or a line without a place for the name.
    """
    if named in TEMPLATES:
        return TEMPLATES[named]
    if not Path(named).is_file():
        raise ValueError(f"templates {named} is no file and none of the sets {', '.join(TEMPLATES)}")
    lines = (line.strip() for line in Path(named).read_text(encoding="utf-8").splitlines())
    return check_templates([line for line in lines if line])


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return templates after checking that each has a place for the name.

    Raises:
        TypeError: one string in place of several.
        ValueError: no template, or one without {}.
    """
    if isinstance(templates, str):
        raise TypeError(f'templates must be several strings, got one: "{templates}"; write [{templates!r}]')
    if not templates:
        raise ValueError('templates is empty; ["{}"] takes the names as they are')
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f'template "{template}" must contain {{}} once, where the class name goes')
    return tuple(templates)
