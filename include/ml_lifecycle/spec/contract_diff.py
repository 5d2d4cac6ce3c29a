"""What changed between two versions of ``contract.yaml``, and which changes break.

A change breaks if data that met the old contract may be halted by the new one, or if a field that others may
read is gone. A stricter rule that only warns is a change like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path as FilePath
from typing import Any

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.contract import Contract, ContractField, ContractFile
from ml_lifecycle.spec.contract_rules import Conditional, References
from ml_lifecycle.spec.explain import show_path
from ml_lifecycle.spec.loader import Parsed, read_spec
from ml_lifecycle.spec.problems import Problem, spec_error
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.spec.yaml12 import Path

_STRICTNESS = ("allow", "warn", "halt")


@dataclass(frozen=True)
class Change:
    """One difference.

    :param path: where it stands below its contract
    :param gone: whether that is a place in the old file
    """

    path: Path
    text: str
    breaks: bool
    gone: bool = False


def diff_files(old: FilePath, new: FilePath) -> list[tuple[Problem, bool]]:
    """Every change, shown at its place, and whether it breaks.

    :raises SpecError: a file is missing or malformed. Retry: no.
    """
    before, after = _read(old), _read(new)
    known, found = _by_name(before.value), _by_name(after.value)
    changes = []
    for name in [*known, *(name for name in found if name not in known)]:
        if name not in found:
            path, contract = known[name]
            changes.append((_problem(before, path, f"contract {contract.name} is gone"), True))
        elif name not in known:
            changes.append((_problem(after, found[name][0], f"contract {name} is new"), False))
        else:
            for change in diff_contracts(known[name][1], found[name][1]):
                file, base = (before, known[name][0]) if change.gone else (after, found[name][0])
                changes.append((_problem(file, (*base, *change.path), change.text), change.breaks))
    return changes


def breaking_changes(old: Contract, new: Contract, written: Parsed[ContractFile] | None) -> list[str]:
    """What breaks from ``old`` to ``new``, at its line of the file that ``new`` is written in.

    :param written: None where that is not known; each change then begins with its path below the contract
    """
    changes = [change for change in diff_contracts(old, new) if change.breaks]
    if written is None:
        return [f"{show_path(change.path)}: {change.text}" for change in changes]
    base, _ = _by_name(written.value)[new.name]
    # What is gone has no line of its own any more.
    paths = (change.path[:1] if change.gone else change.path for change in changes)
    return [
        _problem(written, (*base, *path), change.text).text
        for path, change in zip(paths, changes, strict=True)
    ]


def _read(path: FilePath) -> Parsed[ContractFile]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    parsed, problems = read_spec(ContractFile, data, str(path))
    if parsed is None:
        raise spec_error(problems)
    return parsed


def _by_name(file: ContractFile) -> Mapping[str, tuple[Path, Contract]]:
    if file.contract is not None:
        return {file.contract.name: (("contract",), file.contract)}
    return {
        contract.name: (("contracts", number), contract) for number, contract in enumerate(file.contracts)
    }


def _problem(file: Parsed[ContractFile], path: Path, text: str) -> Problem:
    while path not in file.document.values:  # what is not written stands where it would
        path = path[:-1]
    return file.source.problem(file.document.value_mark(path), text)


def diff_contracts(old: Contract, new: Contract) -> Iterator[Change]:
    """Every change from ``old`` to ``new`` but those of words."""
    before = {item.name: (number, item) for number, item in enumerate(old.fields)}
    after = {item.name: (number, item) for number, item in enumerate(new.fields)}
    for name, (number, _) in before.items():
        if name not in after:
            yield Change(("fields", number), f"field {name} is gone", True, gone=True)
    for name, (number, item) in after.items():
        if name in before:
            yield from _field_changes(("fields", number), before[name][1], item)
        else:
            yield Change(("fields", number), f"field {name} is new", item.severity == "halt")
    yield from _table_changes(old, new)


def _field_changes(place: Path, old: ContractField, new: ContractField, where: str = "") -> Iterator[Change]:
    halts = new.severity == "halt"

    def change(key: str, stricter: bool, was: object, now: object) -> Change:
        text = f"{new.name}{where}: {key} was {_shown(was)} and is {_shown(now)}"
        return Change((*place, key), text, stricter and halts)

    if old.type != new.type:
        wider = (old.type, new.type) == ("integer", "float")
        yield change("type", not wider, old.type, new.type)
    if _most_missing(old) != _most_missing(new):
        key = "nullable" if old.nullable != new.nullable else "max_missing"
        stricter = _most_missing(new) < _most_missing(old)
        yield change(key, stricter, getattr(old, key), getattr(new, key))
    if old.unique != new.unique:
        yield change("unique", new.unique, old.unique, new.unique)
    for key in _FIELD_LIMITS:
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            yield change(key, _stricter(was, now, _LIMITS[key]), was, now)
    for key in _WHOLE_RULES:
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            yield change(key, now is not None, was, now)
    known, allowed = set(old.allowed_values or ()), set(new.allowed_values or ())
    if known != allowed:
        stricter = bool(allowed) and (not known or not known <= allowed)
        yield change("allowed_values", stricter, old.allowed_values, new.allowed_values)
    if old.severity != new.severity:
        yield change("severity", halts, old.severity, new.severity)
    if old.pii != new.pii:
        yield change("pii", False, old.pii, new.pii)
    yield from _conditional_changes(place, old, new)
    yield from _reference_changes((*place, "references"), new.name, old.references, new.references)
    yield from _rule_changes((*place, "distribution"), new.name, old.distribution, new.distribution)


def _reference_changes(
    path: Path, name: str, old: References | None, new: References | None
) -> Iterator[Change]:
    if new is None:
        if old is not None:
            yield Change(path, f"{name}: is not looked up in {old.words} any more", False)
        return
    halts = new.severity == "halt"
    if old is None or old.words != new.words:
        yield Change(path, f"{name}: must be found in {new.words}", halts)
        return
    if old.max_unknown != new.max_unknown:
        text = f"{name}: max_unknown was {_shown(old.max_unknown)} and is {_shown(new.max_unknown)}"
        yield Change((*path, "max_unknown"), text, halts and new.max_unknown < old.max_unknown)
    if old.severity != new.severity:
        text = f"{name}: severity of references was {old.severity} and is {new.severity}"
        yield Change((*path, "severity"), text, halts)


def _conditional_changes(place: Path, old: ContractField, new: ContractField) -> Iterator[Change]:
    """Rules of the same rows are compared with each other, whatever their order."""
    gone = list(enumerate(old.conditional))
    found = list(enumerate(new.conditional))
    # Several may be of the same rows, with a severity each: first those that stayed as they were.
    for same in (_equal, _of_the_same_rows):
        for number, one in list(found):
            was = next((pair for pair in gone if same(pair[1], one)), None)
            if was is None:
                continue
            gone.remove(was)
            found.remove((number, one))
            path = (*place, "conditional", number)
            yield from _field_changes(path, old.under(was[1]), new.under(one), f" {one.words}")
    for number, one in found:
        yield Change(
            (*place, "conditional", number), f"{new.name}: has new rules {one.words}", one.severity == "halt"
        )
    for number, one in gone:
        path = (*place, "conditional", number)
        yield Change(path, f"{new.name}: is not judged {one.words} any more", False, gone=True)


def _of_the_same_rows(old: Conditional, new: Conditional) -> bool:
    return frozenset(old.when) == frozenset(new.when)


def _equal(old: Conditional, new: Conditional) -> bool:
    return _of_the_same_rows(old, new) and old == new.model_copy(update={"when": old.when})


# Whether a new limit lets less pass than the old one.
_LIMITS: Mapping[str, Callable[[Any, Any], bool]] = {
    "min": lambda was, now: now > was,
    "max": lambda was, now: now < was,
    "min_share": lambda was, now: now > was,
    "max_psi": lambda was, now: now < was,
    "max_missing_increase": lambda was, now: now < was,
    "max_staleness": lambda was, now: now < was,
    "min_rows_per_day": lambda was, now: now > was,
    "max_rows_per_day": lambda was, now: now < was,
}
_FIELD_LIMITS, _RULE_LIMITS = tuple(_LIMITS)[:3], tuple(_LIMITS)[3:]
# Of two of them nobody can tell which lets more pass.
_WHOLE_RULES = ("pattern", "at_least", "above")


def _stricter(was: Any, now: Any, is_stricter: Callable[[Any, Any], bool]) -> bool:
    return now is not None and (was is None or is_stricter(was, now))


def _most_missing(item: ContractField) -> float:
    """The largest share of nulls that passes; without any limit at least one value must be there."""
    if not item.nullable:
        return 0
    return math.nextafter(1, 0) if item.max_missing is None else item.max_missing


def _table_changes(old: Contract, new: Contract) -> Iterator[Change]:
    before, after = ([frozenset(group) for group in one.unique_together] for one in (old, new))
    for number, group in enumerate(new.unique_together):
        if frozenset(group) not in before:
            yield Change(("unique_together", number), f"{', '.join(group)} must be unique together", True)
    for number, group in enumerate(old.unique_together):
        if frozenset(group) not in after:
            text = f"{', '.join(group)} need not be unique together"
            yield Change(("unique_together", number), text, False, gone=True)
    for key in ("freshness", "volume"):
        yield from _rule_changes((key,), key, getattr(old, key), getattr(new, key))
    if (was := old.extra_columns) != (now := new.extra_columns):
        stricter = _STRICTNESS.index(now) > _STRICTNESS.index(was)
        text = f"extra_columns was {was} and is {now}"
        yield Change(("extra_columns",), text, stricter and now == "halt")


def _rule_changes(path: Path, name: str, old: Any, new: Any) -> Iterator[Change]:
    """Changes of a rule with a severity and limits of its own; None where there is no such rule."""
    if new is None:
        if old is not None:
            yield Change(path, f"{name}: {path[-1]} is not judged any more", False)
        return
    halts = new.severity == "halt"
    if old is not None and old.severity != new.severity:
        text = f"{name}: severity of {path[-1]} was {old.severity} and is {new.severity}"
        yield Change((*path, "severity"), text, halts)
    for key in _RULE_LIMITS:
        was, now = getattr(old, key, None), getattr(new, key, None)
        if was != now:
            text = f"{name}: {key} was {_shown(was)} and is {_shown(now)}"
            yield Change((*path, key), text, halts and _stricter(was, now, _LIMITS[key]))


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.15g}" if isinstance(value, float) else str(value)
