"""Run the training program again and again, killing it on the way: `python -m tests.train.killable LOGS PLANS [FLAGS]`.

One process that has imported everything forks a child for every start, so that twenty starts cost seconds. PLANS is a
JSON object: the name of a run -> its kills, one for every start; after them the run may finish. A kill is
{"operation": k, "seconds": s}: s seconds after the k-th operation of the process on the run's files (`open`, `rename`,
`mkdir`, `remove`, …), or {"checkpoint": k, "seconds": s}: s seconds after the start has saved its k-th checkpoint (0:
after the start itself). "ranks" names whom it hits (all without it). Prints a JSON object of how the starts ended, rank
by rank.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer would import it: seconds, in every child
import tyro  # noqa: F401  # likewise

from fastclip.models import PRESETS
from fastclip.train.__main__ import main
from tests.train.conftest import TINY

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
PATIENCE = 120.0  # seconds a start may take


def start(run: Path, flags: list[str], ranks: int, kill: dict[str, Any]) -> list[str]:
    """Start the program on so many ranks, kill it as told, and return how each rank ended."""
    resumable = any(run.glob("checkpoints/step_*"))
    if not resumable and run.exists():
        shutil.rmtree(run)  # killed before its first checkpoint
    arguments = [*flags, "--logs", str(run.parent), "--name", run.name]
    if resumable:
        arguments += ["--resume", "latest"]
    port = free_port()
    victims = kill.get("ranks", list(range(ranks)))
    children = {}
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            child(run, arguments, rank, ranks, port, kill if rank in victims else {})
        children[pid] = rank
    ends: dict[int, str] = {}
    due = time.monotonic() + PATIENCE
    saved, newest = 0, newest_checkpoint(run)
    while len(ends) < ranks:
        if saved == kill.get("checkpoint"):
            due = min(due, time.monotonic() + kill["seconds"])
        elif newest != (newest := newest_checkpoint(run)):
            saved += 1
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ends[children[pid]] = describe(status)
            if ends[children[pid]] != "0":
                due = time.monotonic()  # the others are useless, as torchrun finds, too
                victims = list(range(ranks))
        elif time.monotonic() >= due:
            for victim, rank in children.items():
                if rank in victims and rank not in ends:
                    os.kill(victim, signal.SIGKILL)
            due = time.monotonic() + PATIENCE
        else:
            time.sleep(0.001)
    return [ends[rank] for rank in range(ranks)]


def child(run: Path, arguments: list[str], rank: int, ranks: int, port: int, kill: dict[str, Any]) -> None:
    """Be one rank, and never return."""
    code = 1
    try:
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
        if "operation" in kill:
            die_at(kill["operation"], kill.get("seconds", 0.0), str(run))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def die_at(operation: int, seconds: float, folder: str) -> None:
    """Let this process be killed so long after it begins its `operation`-th operation on files below `folder`."""
    number = itertools.count(1)

    def die() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(name: str, values: tuple[Any, ...]) -> None:
        if name in OPERATIONS and str(values[0]).startswith(folder) and next(number) == operation:
            if seconds:
                threading.Thread(target=die).start()
            else:
                die()

    sys.addaudithook(watch)


def newest_checkpoint(run: Path) -> str:
    """Return the name of the checkpoint saved last, or ""."""
    return max((path.name for path in run.glob("checkpoints/step_*")), default="")


def describe(status: int) -> str:
    """Return the exit code, or "killed"."""
    return "killed" if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    PRESETS["tiny"] = TINY
    logs, ranks_of_each = Path(sys.argv[1]), int(os.environ.get("RANKS", "1"))
    outcome = {
        name: [start(logs / name, sys.argv[3:], ranks_of_each, kill) for kill in [*kills, {}]]
        for name, kills in json.loads(sys.argv[2]).items()
    }
    print(json.dumps(outcome))
