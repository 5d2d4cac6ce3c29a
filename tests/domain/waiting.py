"""Waiting for what another process does: tests poll, they never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(read: Callable[[], T], what: str = "it holds", seconds: float = 120) -> T:
    """The first true value that ``read`` gives.

    The deadline is for what hangs, not for a machine that is slow.

    :raises AssertionError: there was none within ``seconds``.
    """
    deadline, pause = time.monotonic() + seconds, 0.02
    while not (value := read()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what} (still {value!r})"
        time.sleep(pause)
        # What takes long is asked less often: the asking itself costs a small machine.
        pause = min(1.2 * pause, 0.5)
    return value
