"""Turns validation errors into problems an author can act on, by the JSON Schema of what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from ml_lifecycle.spec.problems import Problem, SourceFile, suggest
from ml_lifecycle.spec.types import FieldError
from ml_lifecycle.spec.yaml12 import Document, Path

Schema = Mapping[str, Any]

_NOUNS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def explain(
    errors: list[Any], cls: type[BaseModel], document: Document, source: SourceFile
) -> Iterator[Problem]:
    """One problem for each place and reason.

    :param errors: of ``pydantic.ValidationError.errors()``
    """
    root = _schema_of(cls)
    seen: set[tuple[Path, str]] = set()
    for error in errors:
        path, mark_key, message, hints = _explain_one(error, root, document)
        if message is None or (path, message) in seen:
            continue
        seen.add((path, message))
        missing = error["type"] == "missing"
        mark = document.key_mark(path[:-1] if missing else path) if mark_key else document.value_mark(path)
        yield source.problem(mark, f"{show_path(path)}: {message}" if path else message, hints)


@cache
def _schema_of(cls: type[BaseModel]) -> Schema:
    return cls.model_json_schema()


def show_path(path: Path) -> str:
    """``evaluation.gates[0].metric``."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif re.fullmatch(r"\w+", part):
            shown += f".{part}" if shown else part
        else:
            shown += f"[{part!r}]"
    return shown


def _explain_one(error: Any, root: Schema, document: Document) -> tuple[Path, bool, str | None, list[str]]:
    """Path, whether its key is to blame (else its value), what is wrong, hints."""
    path: Path = tuple(error["loc"])
    kind = error["type"]
    if kind == "missing":
        schema = _schema_at(root, path)
        about = schema.get("description") or _resolve(root, schema).get("description", "")
        meaning = [f"meaning: {about}"] if about else []
        return path, True, "missing key", [f"must be {_noun(root, schema)}", *meaning]
    if kind == "extra_forbidden":
        allowed = list(_resolve(root, _schema_at(root, path[:-1])).get("properties", {}))
        return path, True, "unknown key", suggest(str(path[-1]), allowed)
    if path and path[-1] == "[key]":
        rule = _schema_at(root, path[:-2])["propertyNames"]["patternErrorMessage"]
        return path[:-1], True, f"the name {rule}", []
    while path not in document.values:  # the branches of a union add their own parts
        path = path[:-1]
    value = _value_at(document.data, path)
    if kind == "value_error":
        reason = error["ctx"]["error"]
        if not isinstance(reason, FieldError):
            return path, False, str(reason), []
        # A default is nowhere in the file: then at the nearest key around it.
        around = ((*path, *reason.path[:end]) for end in range(len(reason.path), -1, -1))
        place = next(one for one in around if one in document.values)
        absent = show_path((*path, *reason.path)[len(place) :])
        return place, False, f"{absent}: {reason.message}" if absent else reason.message, []
    if kind in ("too_short", "string_too_short"):
        # Entries that are wrong are not counted: that is no mistake of its own.
        return path, False, None if value else "must not be empty", []
    schema = _schema_at(root, path)
    got = document.written.get(path) or _show_value(value)
    names = [str(name) for name in _resolve(root, schema).get("enum", ())]
    hints = suggest(value, names) if names and isinstance(value, str) else []
    return path, False, f"must be {_noun(root, schema)}, not {got}", hints[:-1]


def _resolve(root: Schema, schema: Schema) -> Schema:
    """``schema`` behind its reference; of alternatives, the one with an inside."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    branches = [_resolve(root, branch) for branch in schema.get("anyOf", ())]
    inner = [branch for branch in branches if branch.keys() & {"properties", "items", "enum"}]
    return inner[0] if inner else schema


def _schema_at(root: Schema, path: Path) -> Schema:
    """The schema of ``path``, still a reference if it is one, with its own description."""
    schema = root
    for part in path:
        holder = _resolve(root, schema)
        if isinstance(part, int):
            schema = holder.get("items", {})
        else:
            named = [*holder.get("patternProperties", {}).values(), holder.get("additionalProperties")]
            schema = holder.get("properties", {}).get(part) or next((s for s in named if s), {})
        schema = schema if isinstance(schema, Mapping) else {}
    return schema


def _noun(root: Schema, schema: Schema) -> str:
    """What a value should be, in words."""
    if "anyOf" in schema:
        nouns = [_noun(root, branch) for branch in schema["anyOf"] if branch.get("type") != "null"]
        return " or ".join(dict.fromkeys(nouns))
    schema = _resolve(root, schema)
    if "patternErrorMessage" in schema:
        return str(schema["patternErrorMessage"]).removeprefix("must be ")
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(name) for name in schema["enum"])
    if schema.get("format") == "date-time":
        return "a moment with its time zone, such as 2013-01-01T00:00:00Z"
    if "properties" in schema:
        needed = schema.get("required", ())
        return f"a mapping with {', '.join(needed or schema['properties'])}"
    bounds = [f"{words} {schema[key]:.12g}" for key, words in _BOUNDS.items() if key in schema]
    noun = _NOUNS.get(str(schema.get("type")), "another kind of value")
    return f"{noun}, {' and '.join(bounds)}" if bounds else noun


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _show_value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value if len(value) <= 60 else f"{value[:57]}..."
        # Letters that only look like the allowed ones are shown for what they are.
        return repr(value) if value.isascii() else f"{value!r} ({value!a})"
    return "a list" if isinstance(value, list) else "a mapping"
