"""Label and field selectors, as the API's query parameters write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ml_lifecycle.localpods.status import bad_request
from ml_lifecycle.shown import shown

Labels = Mapping[str, str]
Matcher = Callable[[Labels], bool]

_KEY = r"[A-Za-z0-9][A-Za-z0-9._/-]*"
_SET = re.compile(rf"(?P<key>{_KEY})\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUALITY = re.compile(rf"(?P<key>{_KEY})\s*(?P<operator>==|!=|=)\s*(?P<value>[A-Za-z0-9._-]*)")
_EXISTS = re.compile(rf"(?P<absent>!)?\s*(?P<key>{_KEY})")

EVENT_FIELDS = frozenset(
    {
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "metadata.name",
        "metadata.namespace",
        "reason",
        "type",
    }
)


def label_selector(text: str) -> Matcher:
    """Whether a pod's labels satisfy ``text``: ``a=b``, ``a!=b``, ``a``, ``!a``, ``a in (b, c)``.

    :raises ApiError: 400, it cannot be parsed. Retry: no.
    """
    requirements = [_requirement(part.strip()) for part in _parts(text) if part.strip()]
    return lambda labels: all(holds(labels) for holds in requirements)


def _parts(text: str) -> list[str]:
    """What stands between the commas that are not in parentheses."""
    parts, open_ = [""], False
    for piece in re.split(r"([,()])", text):
        open_ = piece == "(" or (open_ and piece != ")")
        if piece == "," and not open_:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _requirement(text: str) -> Matcher:
    if found := _SET.fullmatch(text):
        key, wanted = found["key"], found["operator"] == "in"
        values = {value.strip() for value in found["values"].split(",")}
        return lambda labels: (labels.get(key) in values) is wanted
    if found := _EQUALITY.fullmatch(text):
        key, wanted, value = found["key"], found["operator"] != "!=", found["value"]
        return lambda labels: (labels.get(key) == value) is wanted
    if found := _EXISTS.fullmatch(text):
        key, wanted = found["key"], found["absent"] is None
        return lambda labels: (key in labels) is wanted
    raise bad_request(
        f"unable to parse requirement: {shown(text)}; expected key=value, key!=value, key or !key"
    )


def event_selector(text: str) -> Matcher:
    """Whether an event's flattened fields satisfy ``text``: ``involvedObject.name=pod,type!=Normal``.

    :raises ApiError: 400, it cannot be parsed or names a field that events are not selected by. Retry: no.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        found = _EQUALITY.fullmatch(part)
        if found is None:
            raise bad_request(f"invalid selector: {shown(part)}; expected field=value or field!=value")
        if found["key"] not in EVENT_FIELDS:
            raise bad_request(
                f"{shown(found['key'])} is not a known field selector; use one of {sorted(EVENT_FIELDS)}"
            )
    return label_selector(",".join(parts))
