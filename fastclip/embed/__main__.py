"""`python -m fastclip.embed`: the command line."""

from __future__ import annotations

import sys

from fastclip.embed.program import Options, run
from fastclip.space.command import main as command

EXAMPLES = """\
  python -m fastclip.embed runs/demo my/pictures my/embeddings
  python -m fastclip.embed runs/demo "shards/{0000..0099}.tar" my/embeddings --workers 8
  python -m fastclip.embed ViT-B-32.pt photos my/embeddings --no-captions"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(Options, run, argv, name="embed", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
