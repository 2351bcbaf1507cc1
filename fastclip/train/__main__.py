"""`python -m fastclip.train`: the command line of the training program, and what its exit codes mean."""

from __future__ import annotations

import os
import sys

from fastclip.train.command_line import parse
from fastclip.train.config import ConfigError
from fastclip.train.signals import Stopped, StopSignals

DONE, FAILED, WRONG_SETTINGS, DIVERGED, BAD_DATA = range(5)


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code.

    0 done; 1 the run failed (a full disk, another rank that died); 2 wrong settings; 3 loss or gradient were not
    finite too often, the report is written; 4 too many pairs cannot be read, all is saved and the report is written;
    128 + n stopped by signal n (130 for SIGINT, 143 for SIGTERM), after saving.
    """
    # From here on, before a process group or the data make anyone wait, a signal is an orderly end.
    with StopSignals().caught() as stop:
        try:
            return _run(sys.argv[1:] if argv is None else argv, stop)
        except Stopped as stopped:
            say(f"{stopped}")
            return 128 + stopped.signal


def _run(argv: list[str], stop: StopSignals) -> int:
    try:
        invocation = parse(argv)
        if invocation.print_config:
            print(invocation.config.to_yaml(), end="")
            return DONE
        from fastclip.data import DataError
        from fastclip.distributed import CollectiveError
        from fastclip.train import forecast, program
        from fastclip.train.distributed import RankError
        from fastclip.train.loop import Diverged
    except ConfigError as error:
        say(f"error: {error}")
        return WRONG_SETTINGS
    try:
        if invocation.dry_run:
            forecast.dry_run(invocation.config)
        else:
            program.run(invocation.config, stop)
    except ConfigError as error:
        say(f"error: {error}")
        return WRONG_SETTINGS
    except Diverged as error:
        say(f"error: {error}")
        return DIVERGED
    except DataError as error:
        say(f"error: {error}")
        return BAD_DATA
    except (CollectiveError, RankError, OSError) as error:  # OSError: a full disk, a read-only folder
        say(f"error: {error}")
        return FAILED
    return DONE


def say(message: str) -> None:
    """Print a line to standard error; other processes than the first say who they are."""
    rank = os.environ.get("RANK", "0")
    print(message if rank == "0" else f"[rank {rank}] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
