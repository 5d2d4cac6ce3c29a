"""What somebody sent, for an error that says so."""

from __future__ import annotations

import reprlib
from typing import Any


class _AsSent(reprlib.Repr):
    """Words of JSON and YAML, which is what people send."""

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"


_REPR = _AsSent()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring = 2, 3, 2, 60


def shown(value: Any) -> str:
    """A value as text: short, however long or deeply nested it is."""
    return _REPR.repr(value)
