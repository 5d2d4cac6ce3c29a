"""How a mistake in a model folder is shown: file:line:column, an excerpt, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.yaml12 import Mark

_MAX_WIDTH = 100


@dataclass(frozen=True)
class Problem:
    """One mistake. ``text`` is all there is to show, over several lines."""

    text: str
    line: int = 1
    column: int = 1


@dataclass(frozen=True)
class SourceFile:
    """A file as its author sees it.

    :param shown: the path as it was asked for
    """

    shown: str
    text: str

    def problem(self, mark: Mark, message: str, hints: Iterable[str] = ()) -> Problem:
        """``message`` with its place, three lines around it, and hints below."""
        lines = [f"{self.shown}:{mark.line}:{mark.column}: {message}", *self._excerpt(mark)]
        return Problem("\n".join([*lines, *(f"  {hint}" for hint in hints)]), mark.line, mark.column)

    def _excerpt(self, mark: Mark) -> list[str]:
        source = re.split(r"\r\n|\r|\n", self.text.replace("\t", " "))
        if len(source) > max(mark.line, 1) and not source[-1]:
            source.pop()  # what follows the last line's end is no line
        width = len(str(mark.line + 1))
        # A long line is shown around the mark.
        start = max(0, mark.column - _MAX_WIDTH // 2) if mark.column > _MAX_WIDTH else 0
        excerpt = []
        for number in range(max(1, mark.line - 1), min(len(source), mark.line + 1) + 1):
            here = number == mark.line
            shown = source[number - 1].rstrip()[start : start + _MAX_WIDTH]
            line = "".join(c if c.isprintable() else "\ufffd" for c in shown)  # no escape codes in terminals
            excerpt.append(f"{'>' if here else ' '} {number:>{width}} | {line}".rstrip())
            if here:
                length = min(mark.length, _MAX_WIDTH - (mark.column - 1 - start))
                excerpt.append(f"  {'':>{width}} | {' ' * (mark.column - 1 - start)}{'^' * max(length, 1)}")
        return excerpt


def suggest(name: str, allowed: Sequence[str]) -> list[str]:
    """Hints for a name that is none of ``allowed``: the nearest one, and all of them."""
    folded = {candidate.casefold(): candidate for candidate in allowed}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    hints = [f"did you mean {folded[near[0]]!r}?"] if near else []
    return [*hints, f"allowed: {', '.join(allowed) or 'none'}"]


def spec_error(problems: Iterable[Problem]) -> SpecError:
    """One error with every problem's text."""
    return SpecError("\n\n".join(problem.text for problem in problems))
