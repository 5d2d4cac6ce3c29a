"""Python's regular expressions over columns of text: by Polars' own engine where it means the same.

A contract's patterns are Python's, as everywhere in Great Expectations. Polars' engine is many times faster
but speaks another dialect: no look-around, other Unicode classes, another ``$``. So a pattern is not handed
over but translated, construct by construct; what has no equal is left to Python, once for each text.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # as stable as its three callers in CPython
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Literal

import polars as pl

# On text of ASCII alone both mean these by the classes; beyond it Unicode's versions and properties differ.
_ASCII_CLASSES = {
    codes.CATEGORY_DIGIT: "0-9",
    codes.CATEGORY_SPACE: r" \t\n\r\x0b\x0c\x1c-\x1f",
    codes.CATEGORY_WORD: "0-9A-Za-z_",
}
_MAX_REPEAT = 1000


_Tail = Literal["nothing", "end of text", "more"]


class _NoEqualError(Exception):
    """A construct that Polars' dialect lacks or means otherwise."""


def lacks_pattern(value: pl.Expr, pattern: str) -> pl.Expr:
    """Whether text holds no match of ``pattern``, as ``re.search`` would find it; null for null."""
    translated = translate(pattern)
    if translated is None:
        return _lacks_in_python(value, pattern)
    text, ascii_only = translated
    lacks = ~value.str.contains(text)
    if not ascii_only:
        return lacks
    return (
        pl.when(value.str.len_bytes() == value.str.len_chars())
        .then(lacks)
        .otherwise(_lacks_in_python(value, pattern, beyond_ascii=True))
    )


def translate(pattern: str) -> tuple[str, bool] | None:
    """The same pattern for Polars, and whether it is the same on ASCII text only; None without any."""
    translation = _Translation()
    try:
        tree = parser.parse(pattern)
        if tree.state.flags & ~re.UNICODE.value:
            return None
        text = translation.sequence(tree, "nothing")
        pl.select(pl.lit("").str.contains(text))
    except (_NoEqualError, RecursionError, pl.exceptions.ComputeError):  # the last: too large when compiled
        return None
    return text, translation.ascii_only


def _lacks_in_python(value: pl.Expr, pattern: str, *, beyond_ascii: bool = False) -> pl.Expr:
    compiled = re.compile(pattern)

    def lacks(values: pl.Series) -> pl.Series:
        if beyond_ascii:
            values = values.set(values.str.len_bytes() == values.str.len_chars(), None)
        known = values.unique().drop_nulls()
        found = [not compiled.search(text) for text in known]
        return values.replace_strict(known, pl.Series(found, dtype=pl.Boolean), default=None)

    return value.map_batches(lacks, return_dtype=pl.Boolean, is_elementwise=True)


class _Translation:
    """One pattern's way from Python's parse tree to Polars' text."""

    def __init__(self) -> None:
        self.ascii_only = False

    def sequence(self, nodes: Any, tail: _Tail) -> str:
        """:param tail: what follows these nodes."""
        parts = []
        for place, (code, argument) in enumerate(nodes):
            rest = nodes[place + 1 :]
            after = tail
            if len(rest):
                ends = all(node == (codes.AT, codes.AT_END_STRING) for node in rest)
                after = "end of text" if ends else "more"
            parts.append(self._node(code, argument, after))
        return "".join(parts)

    def _node(self, code: Any, argument: Any, tail: _Tail) -> str:
        if code is codes.LITERAL:
            return _literal(argument)
        if code is codes.NOT_LITERAL:
            return f"[^{_literal(argument)}]"
        if code is codes.ANY:
            return "."
        if code is codes.IN:
            return self._class(argument)
        if code is codes.AT:
            return _position(argument, tail)
        if code is codes.BRANCH:
            return f"(?:{'|'.join(self.sequence(branch, tail) for branch in argument[1])})"
        if code is codes.SUBPATTERN:
            _, added, removed, inner = argument
            if not added and not removed:
                return f"(?:{self.sequence(inner, tail)})"
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = argument
            if least <= _MAX_REPEAT and (most is codes.MAXREPEAT or most <= _MAX_REPEAT):
                upper = "" if most is codes.MAXREPEAT else most
                return f"(?:{self.sequence(inner, 'more')}){{{least},{upper}}}"
        raise _NoEqualError(code)

    def _class(self, members: Any) -> str:
        parts = []
        for code, argument in members:
            if code is codes.NEGATE:
                parts.append("^")
            elif code is codes.LITERAL:
                parts.append(_literal(argument))
            elif code is codes.RANGE:
                parts.append("-".join(map(_literal, argument)))
            elif code is codes.CATEGORY and argument in _ASCII_CLASSES:
                self.ascii_only = True
                parts.append(_ASCII_CLASSES[argument])
            else:  # \D, \S and \W
                raise _NoEqualError(code, argument)
        return f"[{''.join(parts)}]"


def _position(where: Any, tail: _Tail) -> str:
    if where in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
        return r"\A"
    if where is codes.AT_END_STRING or (where is codes.AT_END and tail == "end of text"):
        return r"\z"
    if where is codes.AT_END and tail == "nothing":  # Python's `$` stands before a last line break, too
        return r"\n?\z"
    raise _NoEqualError(where, tail)


def _literal(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        raise _NoEqualError(code)  # half a character, which no column holds
    return rf"\x{{{code:x}}}"
