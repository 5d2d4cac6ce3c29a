"""Texts that match a regular expression, made from what it says: the shortest, a long one, others.

What it asks beyond its letters, such as look-around, is not solved but tried: only texts that match are
handed out, and of some expressions there are none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]  # as in rules.patterns
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_LONGEST = 64  # of what may be repeated without end
_LETTERS = "a1 Zé日_-.\n"
_CATEGORIES = {
    codes.CATEGORY_DIGIT: "079",
    codes.CATEGORY_WORD: "aZ_0é",
    codes.CATEGORY_SPACE: " \t",
    codes.CATEGORY_NOT_DIGIT: "aé -",
    codes.CATEGORY_NOT_WORD: "- .",
    codes.CATEGORY_NOT_SPACE: "aé9",
}


def examples(pattern: str, most: int) -> list[str]:
    """Different texts that the whole pattern matches, the shortest first; always the same ones.

    :param most: how many are wanted; there may be fewer
    """
    tree = parser.parse(pattern)
    compiled = re.compile(rf"\A(?:{pattern})\Z")
    found: dict[str, None] = {}
    for text in _texts(tree, most):
        if len(found) == most:
            break
        if compiled.search(text):
            found[text] = None
    return list(found)


def near_misses(text: str) -> list[str]:
    """Texts that differ a little from one that matches."""
    return ["", text[:-1], text + text[-1:], f"{text}\n", text.swapcase(), f"{text}é", "\x00", " "]


def _texts(tree: Any, most: int) -> Iterator[str]:
    yield _Maker(None, 0).text(tree)
    yield _Maker(None, 1).text(tree)
    for seed in range(20 * most):
        yield _Maker(random.Random(seed), 0).text(tree)


class _Maker:
    """One text; every choice is the first one, the last one, or drawn.

    :param extreme: 0 for the first and fewest, 1 for the last and most
    """

    def __init__(self, draw: random.Random | None, extreme: int) -> None:
        self._draw, self._extreme = draw, extreme
        self._groups: dict[int, str] = {}

    def text(self, nodes: Any) -> str:
        return "".join(self._node(code, argument) for code, argument in nodes)

    def _choice(self, least: int, most: int) -> int:
        if self._draw is not None:
            return self._draw.randint(least, most)
        return most if self._extreme else least

    def _node(self, code: Any, argument: Any) -> str:
        if code is codes.LITERAL:
            return chr(argument)
        if code in (codes.IN, codes.NOT_LITERAL, codes.ANY):
            letters = self._letters(code, argument)
            return letters[self._choice(0, len(letters) - 1)] if letters else ""
        if code is codes.BRANCH:
            return self.text(argument[1][self._choice(0, len(argument[1]) - 1)])
        if code is codes.SUBPATTERN:
            made = self.text(argument[3])
            if argument[0] is not None:
                self._groups[argument[0]] = made
            return made
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = argument
            times = self._choice(least, min(most, max(least, _LONGEST) if self._draw is None else least + 8))
            return "".join(self.text(inner) for _ in range(times))
        if code is codes.GROUPREF:
            return self._groups.get(argument, "")
        return ""  # a position, or something that is looked at and not taken

    def _letters(self, code: Any, argument: Any) -> str:
        if code is codes.ANY:
            return _LETTERS.replace("\n", "")
        if code is codes.NOT_LITERAL:
            return _LETTERS.replace(chr(argument), "")
        found, negated = "", False
        for kind, what in argument:
            if kind is codes.NEGATE:
                negated = True
            elif kind is codes.LITERAL:
                found += chr(what)
            elif kind is codes.RANGE:
                found += "".join(map(chr, range(what[0], min(what[1], what[0] + 255) + 1))) + chr(what[1])
            elif kind is codes.CATEGORY:
                found += _CATEGORIES[what]
        return "".join(one for one in _LETTERS if one not in found) if negated else found
