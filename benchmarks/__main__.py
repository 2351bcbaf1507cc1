"""Run a benchmark: ``python -m benchmarks [COMMAND] [options]``; without a command, ``loss``."""

from __future__ import annotations

import sys
from importlib import import_module

#: Command -> (its module, which has `main(arguments) -> exit status`; what it does).
COMMANDS = {
    "loss": ("benchmarks.loss", "time and memory of the losses against plain torch and the matmul floor"),
    "accuracy": ("benchmarks.accuracy", "errors of losses and gradients against float64"),
    "peers": ("benchmarks.peers", "the same inputs through fastclip and the other published losses"),
    "dropins": (
        "benchmarks.dropins",
        "each drop-in beside the loss of open_clip, transformers, … that it replaces",
    ),
    "sharded": (
        "benchmarks.sharded",
        "losses over 1, 2 and 4 ranks of this machine: time, and bytes on the wire",
    ),
    "scaling": (
        "benchmarks.scaling",
        "simulate a loss over 8 to 4,096 ranks: which mode to use, and its memory",
    ),
    "largebatch": (
        "benchmarks.largebatch",
        "memory of a step of the demo's encoders, with and without micro-batches",
    ),
    "training": (
        "benchmarks.training",
        "a training step against one of open_clip's own trainer, on the CPU",
    ),
    "throughput": ("benchmarks.throughput", "pictures per second of training steps on this machine's GPU"),
    "data": ("benchmarks.data", "training pairs read per second, beside a torch DataLoader with Pillow"),
    "embed": (
        "benchmarks.embed",
        "pictures and texts embedded per second, beside transformers' CLIPModel with the same weights",
    ),
    "gpu": ("benchmarks.gpu", "check and time everything on this machine's GPU"),
    "tune": ("benchmarks.tune", "find the fastest tiles for this machine's GPU and write them down"),
    "chart": ("benchmarks.chart", "draw the charts of a result file anew"),
}


def main(arguments: list[str]) -> int:
    """Dispatch to a command and return its exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{__doc__}\n")
        print("\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()))
        print("\nEach command has options of its own: python -m benchmarks COMMAND --help")
        return 0
    command, rest = "loss", arguments
    if arguments and not arguments[0].startswith("-"):
        command, *rest = arguments
    if command not in COMMANDS:
        print(f"no benchmark is called {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return import_module(COMMANDS[command][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
