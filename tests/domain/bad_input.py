"""What every table of bad input shares: the one clear error that each row ends in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ml_lifecycle.errors import LifecycleError

Error = type[LifecycleError]


@dataclass(frozen=True)
class Raised:
    """What a bad input should end in."""

    error: Error
    retry: bool
    words: str

    def check(self, call: Callable[[], object]) -> None:
        with pytest.raises(LifecycleError) as caught:
            call()
        assert type(caught.value) is self.error, repr(caught.value)
        assert caught.value.retryable is self.retry
        assert self.words in str(caught.value)
        assert "Traceback" not in str(caught.value)
