"""Feature views' fields held against the columns that are made for them, and where in the code they stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import polars as pl
from polars._typing import PolarsDataType

from ml_lifecycle.spec.contract import ContractFile
from ml_lifecycle.spec.loader import Parsed
from ml_lifecycle.spec.yaml12 import Mark


def can_become(made: PolarsDataType, declared: PolarsDataType) -> bool:
    """Whether every value of a column can become one of a field without changing what it says."""
    if made == pl.Null or made == declared:
        return True
    if isinstance(made, pl.List) and isinstance(declared, pl.List):
        return can_become(made.inner, declared.inner)
    if declared.is_float():
        return made.is_numeric() or made == pl.Boolean
    if declared.is_integer():
        return made.is_integer() or made == pl.Boolean
    return declared == pl.String and made in (pl.Categorical, pl.Enum)


def field_mark(source: bytes, table: str, name: str) -> Mark | None:
    """Where ``Field(name="<name>", …)`` stands, first of all in the view of the table's name."""
    found = []
    for view in _calls(ast.parse(source), "FeatureView"):
        for field in _calls(view, "Field"):
            if (given := _argument(field, "name")) is not None and given.value == name:
                mark = Mark(given.lineno, given.col_offset + 1, len(ast.unparse(given)))
                named = _argument(view, "name")
                found.append((named is None or named.value != table, mark))
    return min(found)[1] if found else None


def tag_mark(source: bytes, view: str, name: str, tag: str) -> Mark | None:
    """Where the text of a field's tag stands; else where its name does."""
    marks = []
    for call in _calls(ast.parse(source), "FeatureView", "OnDemandFeatureView", "on_demand_feature_view"):
        for field in _calls(call, "Field"):
            given, tags = _argument(field, "name"), _keyword(field, "tags")
            if given is None or given.value != name or not isinstance(tags, ast.Dict):
                continue
            for key, value in zip(tags.keys, tags.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == tag:
                    mark = Mark(value.lineno, value.col_offset + 1, len(ast.unparse(value)))
                    named = _argument(call, "name")
                    marks.append((named is None or named.value != view, mark))
    return min(marks)[1] if marks else field_mark(source, view, name)


def contract_says(contracts: Parsed[ContractFile] | None, name: str) -> list[str]:
    """What contracts say of columns of this name, a line each, with their places."""
    if contracts is None:
        return []
    lines = []
    single = contracts.value.contract is not None
    for number, contract in enumerate(contracts.value.all):
        base = ("contract",) if single else ("contracts", number)
        for place, item in enumerate(contract.fields):
            if item.name == name:
                mark = contracts.document.value_mark((*base, "fields", place, "type"))
                where = f"{contracts.source.shown}:{mark.line}:{mark.column}"
                lines.append(f"contract {contract.name} has {name} as {item.type}: {where}")
    return lines


def _calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            )
            if called in names:
                yield node


def _argument(call: ast.Call, name: str) -> ast.Constant | None:
    """A literal argument by its keyword."""
    value = _keyword(call, name)
    return value if isinstance(value, ast.Constant) else None


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
