"""`python -m fastclip.export`: the command line."""

from __future__ import annotations

import sys

from fastclip.export.program import Options, run
from fastclip.space.command import main as command

EXAMPLES = """\
  python -m fastclip.export runs/demo my/onnx
  python -m fastclip.export ViT-B-32.pt my/onnx --uint8"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(Options, run, argv, name="export", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
