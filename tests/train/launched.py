"""The training program as torchrun starts it, with the tests' tiny model, and an accident where one is asked for.

ACCIDENT="rank step" in the environment kills that rank in that step, unless torchrun has restarted the run already.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from fastclip.models import PRESETS
from fastclip.train.__main__ import main
from fastclip.train.step import Inputs, Outcome, Step
from tests.train.conftest import TINY


def prepare_accident(rank: int, step: int) -> None:
    """Let this process be killed in a step, counted from 1, if it is the one."""
    take, taken = Step.__call__, []

    def call(self: Step, inputs: Inputs, lr: float) -> Outcome:
        taken.append(None)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, inputs, lr)

    if rank == int(os.environ["RANK"]):
        Step.__call__ = call  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    PRESETS["tiny"] = TINY
    if "ACCIDENT" in os.environ and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        prepare_accident(*map(int, os.environ["ACCIDENT"].split()))
    sys.exit(main())
