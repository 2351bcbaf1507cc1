"""`python -m fastclip.zeroshot`: the command line."""

from __future__ import annotations

import sys

from fastclip.space.command import main as command
from fastclip.zeroshot.program import Options, run

EXAMPLES = """\
  python -m fastclip.zeroshot runs/demo my/classes
  python -m fastclip.zeroshot ViT-B-32.pt imagenet/val --templates photos --classnames names.json
  python -m fastclip.zeroshot runs/demo my/classes --templates my-templates.txt --output results"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(Options, run, argv, name="zeroshot", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
