"""Who may ask a training to stop, and how it hears of it.

SIGTERM, SIGUSR1 and SIGINT (torchrun and Slurm pass them on), the file `stop` in the job's directory,
a time limit, and a callable of the caller (Ray's preemption notice). All lead to the same: agreed by
the ranks at the next step boundary, a checkpoint, exit code 75. Imports nothing large: a worker calls
`remember_signals` before it imports PyTorch.
"""

from __future__ import annotations

import ctypes
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_UNITS_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_POLL_S = 1.0  # between two looks at the file, which may lie on a slow file system
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_remembered: set[int] = set()


class StopSwitch:
    """True once anyone has asked."""

    def __init__(
        self, file: Path, asked: Callable[[], bool] | None = None, after_s: float | None = None
    ) -> None:
        """`after_s`: seconds from now on after which it turns on by itself."""
        self._deadline = math.inf if after_s is None else time.monotonic() + after_s
        self._file = file
        self._asked = asked
        self._on = False
        self._looked = -_POLL_S

    def turn_on(self) -> None:
        self._on = True

    def __call__(self) -> bool:
        if not self._on and self._asked is not None:
            self._on = self._asked()
        now = time.monotonic()
        self._on = self._on or now >= self._deadline
        if not self._on and now - self._looked >= _POLL_S:
            self._looked = now
            self._on = self._file.exists()
        return self._on


def seconds_in(text: str, units: str = "hms") -> float:
    """Seconds in '3h50m', '90m' or '45s'; `units`: those that may stand in it, in this order.

    Raises:
        ValueError: it is anything else.
    """
    found = re.fullmatch("".join(rf"(?:(\d+){unit})?" for unit in units), text)
    if not found or not any(found.groups()):
        raise ValueError(f"{text!r} found, expected hours, minutes, seconds as in 3h50m, 90m or 45s")
    return float(sum(int(n or 0) * _UNITS_S[unit] for unit, n in zip(units, found.groups(), strict=True)))


def remember_signals() -> None:
    """From now on a signal does not end this process: `signals_turn_on` will hand it to the switch."""

    def remember(number: int, frame: FrameType | None) -> None:
        _remembered.add(number)

    for number in SIGNALS:
        signal.signal(number, remember)


@contextmanager
def signals_turn_on(switch: StopSwitch) -> Iterator[None]:
    """While inside, the signals turn the switch on. For the main thread of a process of its own only.

    The main thread blocks them, and with it all threads and processes that it starts: a launcher that
    signals the whole group (Slurm, a terminal) does not kill the compiler in the middle of torch.compile,
    which would end the training with an error. One thread takes them, whatever the main thread waits for.
    """
    ended = threading.Event()

    def listen() -> None:
        while True:
            signal.sigwait(SIGNALS)
            if ended.is_set():
                return
            switch.turn_on()

    def handler(number: int, frame: FrameType | None) -> None:
        """For a signal that the system gives to a thread from before, as numerical libraries have them."""
        switch.turn_on()

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    if _remembered:
        switch.turn_on()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        signal.pthread_kill(listener.ident or 0, signal.SIGUSR1)
        listener.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, old in before.items():
            signal.signal(number, old)


def end_with_parent() -> None:
    """Ask Linux for SIGTERM when the launcher dies, so that a killed torchrun leaves no orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
