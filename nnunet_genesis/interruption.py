"""SIGTERM and SIGUSR1 → a request to stop, for which a training looks after every step."""

from __future__ import annotations

import signal
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Windows has no SIGUSR1."""

_received: list[int] = []


def watch() -> None:
    """Note these signals from now on in place of ending the process."""
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _note)


def unwatch() -> None:
    """Let these signals end the process again."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def watched() -> bool:
    """Whether these signals are noted."""
    return signal.getsignal(signal.SIGTERM) is _note


def received() -> int:
    """Number of the signal that was noted last; 0: none was."""
    return _received[-1] if _received else 0


def ignore(worker: int) -> None:
    """Go on loading: torchrun signals the whole group of a process, which still has a step to finish.

    Args:
        worker: Number of the loading process, which PyTorch gives; it ends with the process that it loads for.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: Any) -> None:
    _received.append(number)
