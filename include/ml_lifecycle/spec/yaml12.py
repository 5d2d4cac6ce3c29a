"""YAML as the specs use it: YAML 1.2's plain values with their positions, and nothing else.

``no``, ``on`` and ``NO`` are text; numbers keep the text they were written as, so that a version ``2.10``
stays one. Refused, because a spec is data that people review: tags, anchors and aliases, doubled keys,
further documents, NaN and infinities. Built from the parser's events, so nothing is ever constructed from a
tag and every value knows where it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

# libyaml's parser takes 0.3 ms for a model.yaml, the pure Python one 7 ms.
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 30
_MAX_INTEGER = 2**63 - 1

# YAML's own list, and the rarer line breaks, which editors do not count as lines.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Path = tuple[str | int, ...]


class Mark(NamedTuple):
    """Where something stands: line and column from 1, and its length in characters."""

    line: int
    column: int
    length: int = 1


class YamlProblem(Exception):
    """The text is not YAML as this project reads it; always caught by the loader. Retry: no."""

    def __init__(self, message: str, mark: Mark) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


@dataclass
class Document:
    """A parsed file.

    :param data: dicts with text keys, lists, and plain values
    :param values: the event each value starts with, by path
    :param keys: the event of each mapping's key, by path
    :param written: numbers as they were written, by path
    :param problems: what is refused but did not stop the parsing
    """

    data: Any = None
    values: dict[Path, yaml.Event] = field(default_factory=dict)
    keys: dict[Path, yaml.Event] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    problems: list[YamlProblem] = field(default_factory=list)

    def key_mark(self, path: Path) -> Mark:
        """Where the key of ``path`` stands; a list's item and the whole file have none: where they start."""
        return _mark(self.keys.get(path) or self.values[path])

    def value_mark(self, path: Path) -> Mark:
        """Where the value at ``path`` starts; one that fills lines of its own stands at its key."""
        event = self.values[path]
        block = isinstance(event, yaml.CollectionStartEvent) and not event.flow_style
        return self.key_mark(path) if block else _mark(event)


def decode(data: bytes) -> str:
    """The text of a YAML file.

    :raises YamlProblem: it is too large, not UTF-8, or has control characters. Retry: no.
    """
    if len(data) > _MAX_CHARACTERS:
        raise YamlProblem(f"the file is larger than {_MAX_CHARACTERS:,} bytes", Mark(1, 1))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        raise YamlProblem("the file is not UTF-8: save it as UTF-8", _mark_at(before)) from error
    if match := _UNPRINTABLE.search(text):
        code = f"U+{ord(match[0]):04X}"
        raise YamlProblem(f"character {code} is not allowed: remove it", _mark_at(text[: match.start()]))
    return text


def parse(text: str) -> Document:
    """Parse one YAML document.

    :raises YamlProblem: the syntax is broken, so nothing after it can be trusted. Retry: no.
    """
    reader = _Reader(text)
    try:
        return reader.document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error, text) from error


def _mark(event: yaml.Event) -> Mark:
    start, end = event.start_mark, event.end_mark
    same_line = start.line == end.line and isinstance(event, yaml.ScalarEvent | yaml.AliasEvent)
    return Mark(start.line + 1, start.column + 1, max(end.column - start.column, 1) if same_line else 1)


def _mark_at(before: str) -> Mark:
    return Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> YamlProblem:
    at = error.problem_mark or error.context_mark
    mark = Mark(at.line + 1, at.column + 1) if at else Mark(1, 1)
    lines = text.splitlines()
    line = lines[mark.line - 1] if mark.line <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return YamlProblem("a tab cannot indent YAML: use spaces", Mark(mark.line, line.index("\t") + 1))
    reason = f"{error.context}: {error.problem}" if error.context else str(error.problem)
    return YamlProblem(f"broken YAML: {reason}", mark)


class _Reader:
    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._lines = text.splitlines()
        self._result = Document()

    def document(self) -> Document:
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise YamlProblem("the file is empty", Mark(1, 1))
        self._result.data = self._value(next(self._events), ())
        next(self._events)  # the document's end
        event = next(self._events)
        if isinstance(event, yaml.DocumentStartEvent):
            raise YamlProblem("a second document starts here: a spec is one document", _mark(event))
        return self._result

    def _value(self, event: Any, path: Path) -> Any:
        self._result.values[path] = event
        if len(path) > _MAX_DEPTH:
            raise YamlProblem(f"nested deeper than {_MAX_DEPTH} levels", _mark(event))
        if isinstance(event, yaml.AliasEvent):
            self._refuse(f"alias *{event.anchor} is not allowed: write the value out", event)
            return None
        if event.anchor is not None:
            self._refuse(f"anchor &{event.anchor} is not allowed: write the value out", event)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(f"tag {tag} is not allowed: write a plain value", event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        unquoted: bool = event.implicit[0]
        return self._plain(event, path) if unquoted else event.value

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise YamlProblem(self._odd_key(_mark(event)), _mark(event))
            if event.tag is not None or event.anchor is not None:
                self._refuse("a key with a tag or an anchor is not allowed", event)
            key: str = event.value
            if key in items:
                first = self._result.key_mark((*path, key)).line
                self._refuse(f"key {key!r} stands twice, first in line {first}", event)
            else:
                self._result.keys[(*path, key)] = event
            items[key] = self._value(next(self._events), (*path, key))
        return items

    def _plain(self, event: Any, path: Path) -> Any:
        """A value without quotes, by YAML 1.2's core schema."""
        text: str = event.value
        if text in _WORDS:
            return _WORDS[text]
        if text[0] not in "+-.0123456789":
            return text
        number: int | float
        if _INTEGER.fullmatch(text) and len(text) < 40:
            number = int(text)
        elif _BASED_INTEGER.fullmatch(text) and len(text) < 40:
            number = int(text, 0)
        elif _FLOAT.fullmatch(text):
            number = float(text)
        elif _NOT_FINITE.fullmatch(text):
            number = math.nan
        else:
            return text
        if not math.isfinite(number) or (isinstance(number, int) and abs(number) > _MAX_INTEGER):
            self._refuse(f"{text[:40]} is not a number that fits: quote it if it is text", event)
        self._result.written[path] = text
        return number

    def _odd_key(self, mark: Mark) -> str:
        if self._lines[mark.line - 1][: mark.column].endswith("{{"):
            return "templates are not expanded in a spec: write the value"
        return "a key must be plain text"

    def _refuse(self, message: str, event: yaml.Event) -> None:
        self._result.problems.append(YamlProblem(message, _mark(event)))
