"""`python -m fastclip.search`: the command line."""

from __future__ import annotations

import sys

from fastclip.search.program import Options, run
from fastclip.space.command import main as command

EXAMPLES = """\
  python -m fastclip.search my/embeddings --text "a red car" --sheet found.png
  python -m fastclip.search my/embeddings --text "a cat" "a cat + a hat - a dog" --k 24 --json found.json
  python -m fastclip.search my/embeddings --image holiday.jpg --side texts"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(Options, run, argv, name="search", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
