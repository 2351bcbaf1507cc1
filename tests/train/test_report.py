"""The report: headline first, chance and control beside every figure, nothing claimed that was not measured."""

from __future__ import annotations

from pathlib import Path

from fastclip.train.evaluate import Result
from fastclip.train.report import Summary, rows, text_table, write_report

METRICS = {f"{way}_R@{k}": 0.1 * k for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
CHANCE = {key: 0.001 for key in METRICS}


def result(name: str = "unseen", headline: str | None = "R@10", **more: float) -> Result:
    chance = {**CHANCE, **({"choice": 0.2, "group_R@1": 0.01} if more else {})}
    return Result(name, headline, "tone of five", 1234, 99, {**METRICS, **more}, chance)


def summary(results: list[Result], control: list[Result] | None = None, **more: object) -> Summary:
    return Summary(
        title="the run",
        results=results,
        control=control,
        control_label="shuffled captions, 9 of 90 steps",
        facts=["a fact"],
        pictures={"Curves": "curves.png"},
        credits="Art by somebody.",
        **more,  # type: ignore[arg-type]
    )


def test_the_headline_comes_first_and_every_row_has_chance_and_control() -> None:
    low = Result("unseen", "R@10", "", 1234, 99, dict.fromkeys(METRICS, 0.002), CHANCE)
    table = rows([result()], [low])
    assert table[0] == (
        "unseen (1,234 pictures, 99 captions)", "picture → caption R@10", "100.0 %", "0.10 %", "0.20 %"
    )  # fmt: skip
    assert [row[1] for row in table[1:]] == [
        "picture → caption R@1", "picture → caption R@5", "caption → picture R@1", "caption → picture R@5"
    ]  # fmt: skip
    assert {len(row) for row in table} == {5}
    assert {row[0] for row in table[1:]} == {""}
    assert {len(row) for row in rows([result()], None)} == {4}


def test_a_forced_choice_is_shown_with_what_guessing_would_give(tmp_path: Path) -> None:
    write_report(summary([result(choice=0.85, **{"group_R@1": 0.6})]), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "| right tone of five | 85.0 % | 20.0 % |" in text
    assert "guesses the tone of five would reach R@1 12.0 %" in text


def test_the_report_says_what_the_control_is_and_credits_the_art(tmp_path: Path) -> None:
    write_report(summary([result(), result("new", None)], [result(), result()]), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "| control: shuffled captions, 9 of 90 steps |" in text
    assert "`--shuffle-captions` trains it in full" in text
    assert "new (1,234 pictures, 99 captions), a diagnostic" in text
    assert "![Curves](curves.png)" in text and "## Credits\n\nArt by somebody." in text
    assert "Skipped" not in text and not (tmp_path / "skipped.txt").exists()


def test_without_control_none_is_mentioned(tmp_path: Path) -> None:
    write_report(summary([result()]), tmp_path / "report.md")
    assert "control" not in (tmp_path / "report.md").read_text().lower()
    write_report(summary([]), tmp_path / "report.md")
    assert "No pairs were held out" in (tmp_path / "report.md").read_text()


def test_skipped_pairs_are_counted_and_listed(tmp_path: Path) -> None:
    skipped = {"empty file": 2, "no caption": 1}
    files = {"b.png": "empty file", "a.png": "no caption"}
    write_report(summary([result()], skipped=skipped, skipped_files=files), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "3 skipped:\n\n- empty file: 2\n- no caption: 1" in text
    assert (tmp_path / "skipped.txt").read_text() == "a.png\tno caption\nb.png\tempty file\n"


def test_the_terminal_table_is_aligned_and_narrow() -> None:
    text = text_table(summary([result(), result("other")], [result(), result("other")]))
    lines = text.splitlines()
    assert lines[0].split() == ["this", "model", "chance", "control"]
    figures = [line for line in lines if line.startswith("  ")]
    assert len({len(line) for line in figures}) == 1
    assert max(len(line) for line in lines) < 80
    assert lines[1] == "unseen (1,234 pictures, 99 captions)"
