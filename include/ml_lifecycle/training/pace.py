"""How fast a training goes: when will the running segment have ended and been saved?

Only durations are measured here; the clock's readings are passed in. One thread writes and another may read:
each attribute is replaced as a whole.
"""

from __future__ import annotations


class Pace:
    """Measured seconds of steps and saves. All times are readings of one monotonic clock."""

    def __init__(self) -> None:
        self._length: int | None = None  # of the running segment; None outside of one
        self._began = 0.0
        self._done = 0
        self._stepped = 0.0
        self._step_seconds: float | None = None  # as the last whole segment had it
        self._saving = False
        self._save_began = 0.0
        self._save_seconds = 0.0

    def begin(self, steps: int, now: float) -> None:
        """A segment of so many steps begins."""
        self._began, self._done, self._stepped = now, 0, now
        self._length = steps

    def step(self, now: float) -> None:
        """One more step of it is done."""
        self._done, self._stepped = self._done + 1, now

    def begin_save(self, now: float) -> None:
        """The segment has ended and its state is being saved."""
        if self._length is not None:
            self._step_seconds = (now - self._began) / self._length
        self._save_began, self._saving = now, True

    def end_save(self, now: float) -> None:
        """The state is saved."""
        self._save_seconds = now - self._save_began
        self.leave()

    def leave(self) -> None:
        """No segment is running any more, whether it came to its end or not."""
        self._length, self._saving = None, False

    def seconds_to_saved(self, now: float) -> float | None:
        """Seconds until the running segment is saved; None outside of one, and before anything is measured.

        0 while it is being saved: that is worth waiting for, however long it takes.
        """
        length = self._length
        if self._saving:
            return 0.0
        if length is None:
            return None
        paces = [] if self._step_seconds is None else [self._step_seconds]
        if self._done:
            paces.append((self._stepped - self._began) / self._done)
        if not paces:
            return None
        return max(0.0, max(paces) * length - (now - self._began)) + self._save_seconds
