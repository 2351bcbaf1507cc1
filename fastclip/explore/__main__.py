"""`python -m fastclip.explore`: the command line of the explorer."""

from __future__ import annotations

import sys

from fastclip.explore.program import Options, run
from fastclip.space.command import main as command

EXAMPLES = """\
  python -m fastclip.explore runs/demo
  python -m fastclip.explore runs/demo --compose "cat face + red heart" --interpolate "sun | crescent moon"
  python -m fastclip.explore ViT-B-32.pt --data my/pictures --output my-space.html"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(Options, run, argv, name="explore", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
