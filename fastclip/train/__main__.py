"""`python -m fastclip.train`: the command line of the training program."""

from __future__ import annotations

import sys

from fastclip.train.config import ConfigError, parse


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code: 0 done, 1 the run failed, 2 wrong settings, 130 interrupted."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        from fastclip.train.loop import TrainingError
        from fastclip.train.program import run
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingError, OSError) as error:  # OSError: a full disk, a read-only folder
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
