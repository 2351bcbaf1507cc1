"""Check the kernels on this machine's GPU, then time them: ``python -m benchmarks gpu`` (``make gpu``).

Correctness first, against float64 over all regimes of the tests, in a table like docs/accuracy.md; only kernels that
pass are timed, beside plain torch and the matmul floor. Results go to benchmarks/results/. Needs no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import accuracy, loss, report
from benchmarks.report import say


def main(arguments: list[str]) -> int:
    """Run both parts; 1 if a bound was broken (then nothing is timed), 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="float32 and bfloat16 regimes, the quick sizes")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        say(
            "this torch sees no GPU: nothing to check or time here (`make test` runs the kernels interpreted)"
        )
        return 2
    table = ["--output", str(options.output / "accuracy-cuda.md")]
    if accuracy.main([*table, "--dtypes", "float32", "bfloat16"] if options.quick else table):
        say("the kernels are wrong here: not timed")
        return 1
    suite = "quick" if options.quick else "default"
    return loss.main(["--device", "cuda", "--suite", suite, "--output", str(options.output)])
