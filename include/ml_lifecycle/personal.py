"""Personal data: columns that a contract marks ``pii``, and what stands for their values where people look.

Data themselves (snapshots, training sets, scores, the prediction log, the online store, known answers that a
server is checked with) hold values as they are: they are what the model works on, and are protected as data.
Records, reports and messages are read by many, and go into mails, tickets and MLflow: no value stands there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping

import polars as pl

from ml_lifecycle.spec.contract import Contract

MASK = "***"
DIGITS = 2
"""Of numbers in profiles, so many stay."""

# Where libraries quote values. They do so of any column, and know of no contract.
_QUOTED = (
    # Polars: a cast that fails, values of several types
    re.compile(r"(out of [\d,]+ values: ).*", re.DOTALL),
    re.compile(r"(found value of type [^:]+: ).*", re.DOTALL),
    # NumPy, pandas, Python
    re.compile(r"(could not (?:convert|append|parse) [^:'\"`]*)[:'\"`].*", re.DOTALL),
    # Arrow: a value, a line of CSV
    re.compile(r"(Failed to parse string: ).*", re.DOTALL),
    re.compile(r"(Expected \d+ columns, got \d+: ).*", re.DOTALL),
    re.compile(r"(conversion error to [\w\[\], ]+: invalid value ).*", re.DOTALL),
    # scikit-learn's encoders
    re.compile(r"(unknown categories )\[.*", re.DOTALL),
)


def personal_columns(contracts: Iterable[Contract]) -> frozenset[str]:
    """The columns that hold personal data by any of the contracts; features and keys keep their name."""
    return frozenset(field.name for contract in contracts for field in contract.fields if field.pii)


def masked(values: Mapping[str, object], personal: Collection[str]) -> dict[str, object]:
    """Values by column, as they may be shown; a missing one stays, for that may be what is wrong."""
    return {name: MASK if name in personal and value is not None else value for name, value in values.items()}


def pseudonym(value: str) -> str:
    """What stands for a text where it must be told from others, the same in every profile and report.

    Whoever knows all texts that there can be finds out which one it is: no name, but not anonymous either.
    """
    return f"#{hashlib.sha256(value.encode()).hexdigest()[:12]}"


def coarse(numbers: pl.Expr) -> pl.Expr:
    """Numbers of which only the first digits stay: enough to see a distribution move."""
    return numbers.round_sig_figs(DIGITS)


def told(error: BaseException) -> str:
    """Type and text of an error, less the values that libraries quote in theirs."""
    return f"{type(error).__name__}: {without_values(str(error))}"


def without_values(text: str) -> str:
    """A library's message, less the values it quotes."""
    for pattern in _QUOTED:
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text
