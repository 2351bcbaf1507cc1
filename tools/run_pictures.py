"""Make what the docs show of a run: its words in a terminal, and the picture of its report, light and dark.

    python tools/run_pictures.py runs/demo

The words are of a short run of the demo, made for this in a terminal of 128 columns, and go between the marks in
docs/watching.md. The picture is of the report of the run that is named; it needs Chromium (or Chrome).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "watching.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- a run's words: made by tools/run_pictures.py -->", "<!-- end -->"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
COMMAND = (
    "--steps",
    "96",
    "--log-every-n-steps",
    "24",
    "--control-steps",
    "24",
    "--no-pictures",
    "--name",
    "short",
)
COLUMNS = 128


def words() -> str:
    """Return what a short run prints in a terminal: every line as it was left standing."""
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "fastclip.train", "--logs", logs, *COMMAND]
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal is closed
                break
            if not part:
                break
            parts.append(part)
        if process.wait():
            raise SystemExit(b"".join(parts).decode())
        text = b"".join(parts).decode().replace("\r\n", "\n").replace(logs, "runs")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join(["$ python -m fastclip.train --logs runs " + " ".join(COMMAND), *lines]).strip()


def write_words(text: str) -> None:
    """Put the words between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n```text\n{text}\n```\n\n{END}{after}", encoding="utf-8")


def photograph(report: Path, target: Path, theme: str, *, width: int = 1180, height: int = 1560) -> None:
    """Write the top of a report as a PNG."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser found; one of {', '.join(BROWSERS)} is needed")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        text = report.read_text(encoding="utf-8")
        page.write_text(text.replace("<html ", f'<html data-theme="{theme}" ', 1), encoding="utf-8")
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-quic", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
             f"--window-size={width},{height}", f"--screenshot={target}", page.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--only", choices=("words", "report"))
    options = parser.parse_args()
    if options.only != "words":
        for theme, name in (("light", "report.png"), ("dark", "report-dark.png")):
            photograph((options.run / "report.html").absolute(), IMAGES / name, theme)
            print(IMAGES / name)
    if options.only != "report":
        write_words(words())
        print(PAGE)


if __name__ == "__main__":
    main()
