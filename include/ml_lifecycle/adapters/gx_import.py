"""Great Expectations, imported so that neither its log nor its imports do harm."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGER = "great_expectations"


def great_expectations() -> Any:
    """The package with its expectations; the first call takes seconds."""
    logging.getLogger(_LOGGER).setLevel(logging.WARNING)  # its import alone logs hundreds of INFO lines
    with _main_has_a_file():
        import great_expectations
        import great_expectations.expectations

    # This module sets its own level while it is imported.
    logging.getLogger(f"{_LOGGER}.data_context.types.base").setLevel(logging.WARNING)
    return great_expectations


@contextmanager
def _main_has_a_file() -> Iterator[None]:
    """PySpark, which it imports where that is installed, takes ``python -c`` for a doctest, and exits with 0.

    So do workers that were forked from such a process end, without a word.
    """
    main = sys.modules["__main__"]
    lacks = not hasattr(main, "__file__")
    if lacks:
        main.__file__ = "<command>"
    try:
        yield
    finally:
        if lacks:
            del main.__file__
