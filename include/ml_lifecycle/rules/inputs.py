"""A contract's rules on the values of one model input, as the model takes them.

The features stage proves them with this on the training set, and the model server asks this of requests: what
was proved is what is asked. Floats are compared at 32 bits, bounds included: rounding keeps the order of
numbers, so that no value breaks a bound that it kept before. The empty text is what a missing one becomes on
its way to a model; where values may be missing, it is one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.records import ColumnSpec, InputRules
from ml_lifecycle.rules.patterns import translate

Values = Sequence[Any] | NDArray[Any]
Mask = NDArray[np.bool_]

_LEAST, _MOST = -(2**63), 2**63 - 1
_NAMED = 20
# Verdicts on short texts are remembered, so many: what clients send again and again costs a look-up.
_REMEMBERED, _SHORT = 10_000, 100


class ColumnRules:
    """The rules of a column that has some.

    :ivar low: with ``high``, between which numbers its values must lie
    :ivar whole: whether only whole numbers are right, in a column that holds others
    """

    def __init__(self, column: ColumnSpec) -> None:
        if column.rules is None:
            raise ValueError(f"no contract says anything of column {column.name!r}")
        self.column = column
        self.rules = rules = column.rules
        self.whole = rules.type == "integer" and column.type == "float"
        self.low, self.high = _bounds(rules, column.type)
        self.allowed = _allowed(rules, column.type)
        self.pattern = _Pattern(rules.pattern) if rules.pattern is not None else None

    @property
    def breakable(self) -> bool:
        """Whether there is a value that would break one."""
        bounded = self.rules.min is not None or self.rules.max is not None
        judged = self.allowed is not None or self.pattern is not None
        return self.whole or bounded or judged or not self.rules.nullable

    def broken(self, values: Values) -> dict[str, Mask]:
        """The rules that are broken, and for each which of the values break it.

        :param values: an array as a model takes it, NaN where one is missing; of text a sequence, None where
            one is missing
        """
        found = self._texts(values) if self.column.type == "string" else self._numbers(np.asarray(values))
        return {rule: mask for rule, mask in found.items() if mask.any()}

    def expected(self, rule: str) -> str:
        """What a value must be to keep a rule."""
        rules = self.rules
        if rule == "not_null":
            return "a value"
        if rule == "type":
            return "a whole number"
        if rule == "pattern":
            return f"text that matches {rules.pattern} as a whole"
        if rule == "allowed_values":
            named = sorted(self.allowed or ()) if rules.type == "boolean" else rules.allowed_values or ()
            values = [str(value) for value in named]
            more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
            return f"one of {', '.join(values[:_NAMED])}{more}"
        if rules.min is None:
            return f"at most {rules.max:g}"
        return f"at least {rules.min:g}" if rules.max is None else f"{rules.min:g} to {rules.max:g}"

    def _numbers(self, values: NDArray[Any]) -> dict[str, Mask]:
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), np.bool_)
        found: dict[str, Mask] = {}
        if not self.rules.nullable:
            found["not_null"] = missing
        if self.whole:
            found["type"] = (np.rint(values) != values) & ~missing
        if self.rules.min is not None or self.rules.max is not None:
            found["range"] = (values < self.low) | (values > self.high)
        if self.allowed is not None:
            found["allowed_values"] = ~np.isin(values, list(self.allowed)) & ~missing
        return found

    def _texts(self, values: Values) -> dict[str, Mask]:
        present = set(values)
        wrong: dict[str, Collection[Any]] = {}
        if self.rules.nullable:
            present.discard("")
        elif None in present:
            wrong["not_null"] = (None,)
        present.discard(None)
        if self.allowed is not None:
            wrong["allowed_values"] = present - self.allowed
        if self.pattern is not None:
            wrong["pattern"] = self.pattern.lacking(present)
        return {
            rule: np.fromiter((value in odd for value in values), np.bool_, len(values))
            for rule, odd in wrong.items()
            if odd
        }


class _Pattern:
    """A pattern that the whole of a text must match, in time that grows as the text does.

    What only Python's engine can tell, of which an author's pattern and a client's text may make one that
    takes for ever, is let pass.
    """

    def __init__(self, pattern: str) -> None:
        self._translated = translated(pattern)
        self._known: dict[str, bool] = {}

    def lacking(self, texts: Collection[str]) -> set[str]:
        """Those that do not match."""
        known = self._known
        verdicts = {text: known.get(text) for text in texts}
        if new := [text for text, fits in verdicts.items() if fits is None]:
            judged = dict(zip(new, self._judge(new), strict=True))
            verdicts |= judged
            if len(known) > _REMEMBERED:
                known.clear()
            known.update((text, fits) for text, fits in judged.items() if len(text) <= _SHORT)
        return {text for text, fits in verdicts.items() if not fits}

    def _judge(self, texts: list[str]) -> list[bool]:
        if self._translated is None:
            return [True] * len(texts)
        pattern, ascii_only = self._translated
        fits: list[bool] = pl.Series(texts, dtype=pl.String).str.contains(pattern).to_list()
        if ascii_only:  # beyond ASCII its classes mean something else to Python
            return [fit or not text.isascii() for fit, text in zip(fits, texts, strict=True)]
        return fits


def translated(pattern: str) -> tuple[str, bool] | None:
    """The pattern for Polars' engine, of the whole value, as ``rules.patterns.translate`` has it."""
    return translate(rf"\A(?:{pattern})\Z")


def _bounds(rules: InputRules, kind: str) -> tuple[Any, Any]:
    """The bounds as numbers of the column's type."""
    low = -math.inf if rules.min is None else rules.min
    high = math.inf if rules.max is None else rules.max
    if kind != "int":
        with np.errstate(over="ignore"):
            return np.float32(low), np.float32(high)
    least = _LEAST if low < _LEAST else math.ceil(min(low, _MOST))
    most = _MOST if high > _MOST else math.floor(max(high, _LEAST))
    return min(least, _MOST), min(most, _MOST)


def _allowed(rules: InputRules, kind: str) -> frozenset[Any] | None:
    """The allowed values as a column of the type holds them."""
    values = rules.allowed_values
    if rules.type == "boolean" and kind != "bool":
        values = values or (False, True)
    if values is None or kind == "string":
        return None if values is None else frozenset(values)
    with np.errstate(over="ignore"):
        held: Mapping[str, Any] = {"float": lambda one: float(np.float32(one)), "int": int, "bool": bool}
        return frozenset(held[kind](value) for value in values)
