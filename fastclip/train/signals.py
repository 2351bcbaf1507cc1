"""Stop a run when asked to: SIGTERM and SIGINT let it finish its step and save; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME = 1.0  # seconds within which a signal that comes again is the same one, passed on by a launcher


class Stopped(BaseException):
    """The run was asked to stop, and has. (No Exception, as KeyboardInterrupt is none: nobody is to handle it.)

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int, done: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{done}")
        self.signal = number


class StopSignals:
    """What signals have asked of this process.

    While the run is `patient`, a signal is only noted, and the run looks at `received` between two steps, and between
    two batches of an exam. At other times there is nothing to save, and the signal raises Stopped where the program
    stands.

    A second signal must work where the first one could not: when the main thread waits in a collective for a rank that
    does not come, it runs no handler. So a thread of its own watches for that one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._patient = False

    @contextmanager
    def caught(self) -> Iterator[StopSignals]:
        """Handle the signals while the context lasts. (Only a main thread can: elsewhere nothing is changed.)"""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        pipe_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_the_second, args=(read,), daemon=True).start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(pipe_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(write)  # at which the thread ends

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Only note the first signal while the context lasts; raise Stopped at its end if one came too late for it."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        if not self._patient:
            raise Stopped(number)
        # Printing could wait for a lock that the interrupted line holds.
        os.write(2, b"stopping after this step or batch; the same signal again ends the run at once\n")


def _end_at_the_second(pipe: int) -> None:
    """Read signals' numbers, which the interpreter writes as they come, and end the process at the second one."""
    first = None
    while numbers := os.read(pipe, 64):
        now = time.monotonic()
        for number in numbers:
            if number in _SIGNALS:
                first = now if first is None else first
                if now - first > _SAME:
                    os._exit(128 + number)
    os.close(pipe)
