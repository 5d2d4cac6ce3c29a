"""What a pod does when it is told to end: go on to the next checkpoint if there is time, else end at once."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable

from ml_lifecycle.training.checkpoints import Checkpoints

log = logging.getLogger("ml_lifecycle.training")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAVED = 0  # no signal has this number
# For writing why the pod ended, and for all that is slower than it was when it was measured.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.1, 1.0


def usable(grace: float) -> float:
    """How many of so many seconds between SIGTERM and SIGKILL may pass before the pod says that it ends."""
    return max(0.0, grace - max(_MARGIN_SECONDS, _MARGIN_SHARE * grace))


def end_when_told(checkpoints: Checkpoints, grace: float, say: Callable[[str], None]) -> None:
    """From now on SIGTERM and SIGINT end this process with 143 or 130, even in the middle of a call into C.

    A Python signal handler would wait for that call to return; the wake-up byte is written by C code, and
    a thread can act on it. The checkpoints write a byte of their own when one is saved. A second signal ends
    the process at once.

    :param grace: seconds from SIGTERM to SIGKILL
    :param say: called last, with the name of the signal: say in the lake why there is no result
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    woken = threading.Event()

    def saved() -> None:
        if woken.is_set():
            os.write(writer, bytes([_SAVED]))
            threading.Event().wait()  # for the end: nothing more shall be begun

    def wait() -> None:
        while (number := os.read(reader, 1)[0]) not in _SIGNALS:
            continue
        deadline = time.monotonic() + usable(grace)
        woken.set()
        needed = checkpoints.pace.seconds_to_saved(time.monotonic())
        if needed is not None and needed <= deadline - time.monotonic():
            log.info("asked to end: going on to the next checkpoint, in about %.1f s", needed)
            select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        try:
            say(signal.Signals(number).name)
        finally:
            os._exit(128 + number)

    checkpoints.when_saved = saved
    threading.Thread(target=wait, daemon=True, name="signals").start()
