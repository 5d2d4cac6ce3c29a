"""What somebody sent, for an error that says so."""

from __future__ import annotations

import reprlib
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring = 2, 3, 2, 60


def shown(value: Any) -> str:
    """A value as text: short, however long or deeply nested it is."""
    return _REPR.repr(value)
