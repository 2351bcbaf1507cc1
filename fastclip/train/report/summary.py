"""Say what a run reached: held-out figures beside chance and control, as data, and as a table for a terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastclip.train.evaluate import Result

COLUMNS = ("held-out test", "figure", "this model", "chance")


@dataclass(frozen=True)
class Summary:
    """What the report says of a run."""

    title: str
    results: Sequence[Result]
    control: Sequence[Result] | None  #: the same tests after training on shuffled captions
    control_label: str  #: what the control is, e.g. "shuffled captions, 96 of 768 steps"
    facts: Sequence[str]  #: sentences about model, data, time
    pictures: dict[str, str]  #: file by title
    credits: str | None
    skipped: dict[str, int] = field(default_factory=dict)  #: unreadable pairs by reason
    skipped_files: dict[str, str] = field(default_factory=dict)  #: reason by file
    skipped_steps: int = 0  #: whose loss or gradient was not finite
    failure: str | None = None  #: why the run ended early

    def to_json(self) -> str:
        """Return the summary as JSON; numbers that JSON cannot say become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """Rebuild a summary from `to_json()`."""
        values = json.loads(text)
        known = {f.name for f in dataclasses.fields(cls)}
        values = {key: value for key, value in values.items() if key in known}
        for key in ("results", "control"):
            if values.get(key) is not None:
                values[key] = [Result(**_with_numbers(result)) for result in values[key]]
        return cls(**values)


def rows(results: Sequence[Result], control: Sequence[Result] | None) -> list[tuple[str, ...]]:
    """Return the table's rows, each test's headline first: test, figure, model, chance[, control]."""
    table = []
    for number, result in enumerate(results):
        test = f"{result.name} ({result.pictures:,} pictures, {result.captions:,} {result.answers})"
        if result.headline is None:
            test += ", a diagnostic"
        for key, label in figures(result):
            cells = [test, label, percent(result.metrics[key]), percent(result.chance[key])]
            if control is not None:
                cells.append(percent(control[number].metrics[key]) if number < len(control) else "")
            table.append(tuple(cells))
            test = ""
    return table


def figures(result: Result) -> list[tuple[str, str]]:
    """Return (metric, label) of the figures worth a row, the headline first."""
    found = [(f"image_to_text_R@{k}", f"picture → caption R@{k}") for k in (1, 5, 10)]
    if "choice" in result.metrics:
        found.append(("choice", f"right {result.group_name or 'choice'}"))
        found.append(("group_R@1", "right base, any variant"))
    found += [(f"text_to_image_R@{k}", f"caption → picture R@{k}") for k in (1, 5)]
    found += [("top1", "right class"), ("top5", "right class among five")]
    known = [figure for figure in found if figure[0] in result.metrics]
    return sorted(known, key=lambda figure: figure[0] != f"image_to_text_{result.headline}")


def text_table(summary: Summary) -> str:
    """Return the table for a terminal: a line per test, its figures in columns below."""
    header = COLUMNS if summary.control is None else (*COLUMNS, f"control: {summary.control_label}")
    lines = [("", *(heading.split(":")[0] for heading in header[2:]))]
    for test, figure, *shares in rows(summary.results, summary.control):
        if test:
            lines.append((test,))
        lines.append((f"  {figure}", *shares))
    filled = [line for line in lines if len(line) > 1]
    widths = [max(len(line[i]) for line in filled) for i in range(len(filled[0]))]

    def render(cells: Sequence[str]) -> str:
        first, *shares = cells
        right = [share.rjust(width) for share, width in zip(shares, widths[1:], strict=False)]
        return "  ".join([first.ljust(widths[0]) if shares else first, *right])

    return "\n".join(render(line) for line in lines)


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know to judge the table."""
    said = [
        "R@k: the share of pictures whose caption is among the k nearest of all captions (picture → caption), "
        "or of captions that have a picture among the k nearest of all pictures (caption → picture). "
        "Equal scores count against the model."
    ]
    for result in summary.results:
        if "group_R@1" in result.metrics:
            guess = result.metrics["group_R@1"] * result.chance["choice"]
            said.append(
                f"{result.name}: a model that knows the base as well as this one and guesses the "
                f"{result.group_name} would reach R@1 {percent(guess)}."
            )
    if summary.control is not None:
        said.append(
            f"Control ({summary.control_label}): the same program on the same pictures, with the captions "
            "shuffled among them. It is a short run; `--shuffle-captions` trains it in full."
        )
    return said


def percent(share: float) -> str:
    """Return a fraction in percent, with two decimals where it is small."""
    return f"{100 * share:.2f} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _with_numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {k: float("nan") if v is None else v for k, v in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in result.items()
    }
