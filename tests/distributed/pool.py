"""Processes that play the ranks: started once, each job with a hard time limit, results by rank.

Workers are forked from a server that has imported torch already, so that a new one costs milliseconds; the world is
made anew only when its size changes. A job that fails or overruns ends its workers, and the next one starts others.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

#: Seconds that a collective may take, and a job.
COLLECTIVE_LIMIT, JOB_LIMIT = 30, 60

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed.fsdp", "torch._dynamo", "fastclip"])


class RankError(AssertionError):
    """What went wrong on the ranks of a job, by rank."""


class Pool:
    """Up to `size` ranks, in as many processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[tuple[Any, Connection]] = []
        self._stores = tempfile.TemporaryDirectory()
        self._worlds = 0
        self._world: tuple[int, float] | None = None  # its size, and the seconds that a collective may take

    def run(
        self,
        function: Callable[..., Any],
        world: int,
        *arguments: Any,
        limit: float = JOB_LIMIT,
        collective_limit: float = COLLECTIVE_LIMIT,
    ) -> list[Any]:
        """Call ``function(*arguments)`` on every rank of a world; return the results by rank.

        Raises:
            RankError: an exception on some rank, or no answer within `limit` seconds.
        """
        outcomes = self.outcomes(function, world, *arguments, limit=limit, collective_limit=collective_limit)
        failures = [f"rank {rank}: {said}" for rank, (ok, said) in enumerate(outcomes) if not ok]
        if failures:
            raise RankError("\n".join(failures))
        return [said for _, said in outcomes]

    def outcomes(
        self,
        function: Callable[..., Any],
        world: int,
        *arguments: Any,
        limit: float = JOB_LIMIT,
        collective_limit: float = COLLECTIVE_LIMIT,
    ) -> list[tuple[bool, Any]]:
        """Do as `run`, but return (True, result) or (False, traceback) of every rank."""
        if len(self._workers) < self.size:
            self._start()
        wanted = (world, collective_limit)
        fresh = None
        if self._world != wanted:
            self._world, self._worlds = wanted, self._worlds + 1
            fresh = os.path.join(self._stores.name, str(self._worlds))
        workers = self._workers[:world]
        for rank, (_, pipe) in enumerate(workers):
            pipe.send_bytes(pickle.dumps((function, arguments, rank, world, fresh, collective_limit)))
        outcomes: list[tuple[bool, Any]] = [(False, f"no answer within {limit} s")] * world
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(workers)}
        deadline = time.monotonic() + limit
        while waiting and time.monotonic() < deadline:
            for pipe in wait(list(waiting), deadline - time.monotonic()):
                rank = waiting.pop(pipe)  # type: ignore[arg-type]
                try:
                    outcomes[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    outcomes[rank] = False, "the process ended"
        if not all(ok for ok, _ in outcomes):
            self.close()
        return outcomes

    def close(self) -> None:
        """End all workers."""
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers, self._world = [], None

    def _start(self) -> None:
        self.close()
        for _ in range(self.size):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))


def _work(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments, rank, world, fresh, limit = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            if fresh is not None:
                if dist.is_initialized():
                    dist.destroy_process_group()
                store = dist.FileStore(fresh, world)
                timeout = timedelta(seconds=limit)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
            outcome = True, function(*arguments)
        except Exception:
            outcome = False, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(outcome))
