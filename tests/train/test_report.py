"""The report: headline first, chance and control beside every figure, nothing claimed that was not measured."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import torch
import torch.nn.functional as F

from fastclip.data.source import HeldOut
from fastclip.train.config import Config
from fastclip.train.evaluate import Embedded, Result, measure
from fastclip.train.metrics import MetricLog
from fastclip.train.report import Summary, rows, text_table, write_report
from fastclip.train.report.charts import line_chart, nice_ticks, running_mean, short, thin
from fastclip.train.report.mistakes import caption_ranks, choice_kinds, rank_kinds

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


def embedded(pictures: int = 30, captions: int = 12) -> Embedded:
    """Return a test whose first half the model knows, in pictures of one colour each."""
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(captions, 8, generator=generator), dim=1)
    target = torch.arange(pictures) % captions
    noise = torch.linspace(0, 3, pictures)[:, None] * torch.randn(pictures, 8, generator=generator)
    images = torch.arange(pictures, dtype=torch.uint8)[:, None, None, None].expand(pictures, 3, 8, 8) * 8
    groups = torch.stack([target, (target + 1) % captions, (target + 2) % captions], 1)
    gallery = [f"<caption> {i}" for i in range(captions)]
    test = HeldOut("unseen", images, gallery, target, groups, "tone of three", "R@1")
    return Embedded(test, F.normalize(texts[target] + noise, dim=1), texts)


class Reader(HTMLParser):
    """Collect a page's words, and check that its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attributes)["src"] or "")
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


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


def test_the_page_shows_curves_figures_examples_mistakes_and_settings(tmp_path: Path) -> None:
    one = embedded()
    log = MetricLog(tmp_path / "metrics.jsonl")
    for step in range(1, 101):
        log.write(
            step, step / 10, {"train/loss": 5.0 / step, "train/scale": 14.0, "train/samples_per_second": 64.0}
        )
    log.write(100, 10.0, {"val/image_to_text_R@1": 0.5})
    skipped = {"truncated": 3}
    path = write_report(
        summary([measure(one)], [result(choice=0.3, **{"group_R@1": 0.1})], skipped=skipped, skipped_steps=2,
                skipped_files={"a<b>.png": "truncated"}),
        tmp_path, tests=[one], config=Config().to_dict(), facts={"PyTorch": "2.x"},
    )  # fmt: skip
    text = path.read_text()
    page = Reader(text)
    for words in ("the run", "Loss", "Held-out recall", "right tone of three", "chance 8.3 %, control", "2 steps whose",
                  "3 pairs that could not be read", "a<b>.png", "--batch-size", "PyTorch 2.x", "Art by somebody.",
                  "right base, wrong tone", "the 5 nearest of 30 pictures", "<caption> "):  # fmt: skip
        assert words in page.text, words
    assert len(page.pictures) > 30 and all(source.startswith("data:image/") for source in page.pictures)
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", text)  # nothing is loaded from anywhere
    assert text.count("<svg") == 3


def test_a_run_that_ended_early_says_so_at_the_top(tmp_path: Path) -> None:
    text = write_report(summary([], failure="loss nan at step <7>"), tmp_path).read_text()
    assert "Ended early." in text and "loss nan at step &lt;7&gt;" in text
    assert "No pairs were held out" in text


def test_a_forced_choice_is_shown_with_what_guessing_would_give(tmp_path: Path) -> None:
    page = Reader(write_report(summary([result(choice=0.85, **{"group_R@1": 0.6})]), tmp_path).read_text())
    assert "right tone of five 85.0 % 20.0 %" in page.text
    assert "guesses the tone of five would reach R@1 12.0 %" in page.text


def test_without_control_none_is_mentioned(tmp_path: Path) -> None:
    page = Reader(write_report(summary([result(), result("new", None)]), tmp_path).read_text())
    assert "control" not in page.text.lower()
    assert "new 1,234 pictures, 99 captions , a diagnostic" in page.text


def test_results_can_be_read_by_program_and_come_back(tmp_path: Path) -> None:
    one = summary(
        [result()], [result("low")], skipped={"empty file": 2}, skipped_files={"b.png": "empty file"}
    )
    write_report(one, tmp_path)
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text)["results"][0]["metrics"]["image_to_text_R@5"] == 0.5
    assert Summary.from_json(text) == one
    odd = summary([Result("x", None, "", 1, 1, {"image_to_text_R@1": float("nan")}, {})])
    assert "NaN" not in odd.to_json()


def test_mistakes_are_sorted_by_kind() -> None:
    one = embedded()
    ranks = caption_ranks(one)
    z = one.images @ one.texts.T
    own = z.gather(1, one.test.target[:, None])
    assert ranks.tolist() == [1 + int((row > value).sum()) for row, value in zip(z, own, strict=True)]
    kinds = dict(rank_kinds(ranks))
    assert kinds["first"] == int((ranks == 1).sum()) and sum(kinds.values()) == 30
    assert kinds["beyond 100"] == 0 < kinds["2 to 5"]
    choices = dict(choice_kinds(one, ranks))
    nearest = z.argmax(1)
    offset = (nearest - one.test.target) % 12
    assert list(choices.values()) == [int((offset == 0).sum()), int(((offset == 1) | (offset == 2)).sum()),
                                      int((offset > 2).sum())]  # fmt: skip


def test_charts_are_thinned_smoothed_and_have_round_ticks() -> None:
    points = [(float(i), float(i % 2)) for i in range(1, 2001)]
    assert len(thin(points)) == 400 and thin(points)[-1][0] == 2000
    assert all(abs(value - 0.5) < 0.11 for _, value in thin(points)[:-1])
    assert running_mean(points, 0.02)[0] == points[0]
    assert abs(running_mean(points, 0.02)[1000][1] - 0.5) < 0.05
    assert nice_ticks(0, 5.3) == [0, 1, 2, 3, 4, 5, 6] and nice_ticks(0.0, 0.002) == [
        0,
        0.0005,
        0.001,
        0.0015,
        0.002,
    ]
    assert nice_ticks(3.0, 3.0)[0] <= 3.0 < nice_ticks(3.0, 3.0)[-1]
    assert [short(value) for value in (0, 12000, 0.25, 5e-4, 1.5)] == ["0", "12k", "0.25", "5e-4", "1.5"]
    chart = line_chart("A & B", "nats", {"x": [(1.0, 2.0)]})
    assert "A &amp; B" in chart and "legend" not in chart
    Reader(chart)


def test_the_terminal_table_is_aligned_and_narrow() -> None:
    text = text_table(summary([result(), result("other")], [result(), result("other")]))
    lines = text.splitlines()
    assert lines[0].split() == ["this", "model", "chance", "control"]
    figures = [line for line in lines if line.startswith("  ")]
    assert len({len(line) for line in figures}) == 1
    assert max(len(line) for line in lines) < 80
    assert lines[1] == "unseen (1,234 pictures, 99 captions)"
