"""The proof that tagged features hold their contract fields unchanged: every value of the training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

import polars as pl

from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.rules.inputs import ColumnRules
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.feature_tags import Tag, field_of, input_rules, personal_features
from ml_lifecycle.stages.served_features import served_types


class InputProof:
    """Holds rows against the tagged features' rules, batch by batch; numbers alone are kept.

    :param tags: of the features of the service
    :raises TagError: one names no field, or one that its feature cannot hold. Retry: no.
    """

    def __init__(self, tags: Iterable[Tag], contracts: Collection[Contract]) -> None:
        tags = tuple(tags)
        self._columns: dict[str, ColumnRules] = {}
        for tag in tags:
            if (rules := input_rules(*field_of(tag, contracts))) is not None:
                column = ColumnSpec(tag.feature, tag.type, rules=rules)
                self._columns[tag.feature] = ColumnRules(column)
        self.personal = personal_features(tags, contracts)
        self._rows = 0
        self._broken: Counter[tuple[str, str]] = Counter()

    def add(self, rows: pl.DataFrame) -> None:
        """Count what breaks a rule in some of the set's rows, as the join has found them: missing is null."""
        self._rows += rows.height
        for name, rules in self._columns.items():
            if not rules.breakable:
                continue
            values = rows[name].cast(served_types({name: rules.column.type})[name])
            if missing := values.null_count():
                if not rules.rules.nullable:
                    self._broken[name, "not_null"] += missing
                values = values.drop_nulls()
            if rules.column.type == "string":
                counted = values.rename("text").value_counts()
                broken, numbers = rules.broken(counted["text"].to_list()), counted["count"].to_numpy()
                self._broken.update({(name, rule): int(numbers[mask].sum()) for rule, mask in broken.items()})
            else:
                broken = rules.broken(values.to_numpy())
                self._broken.update({(name, rule): int(mask.sum()) for rule, mask in broken.items()})

    def proved(self, columns: Iterable[ColumnSpec]) -> tuple[ColumnSpec, ...]:
        """The columns with their rules, once all rows have been added.

        :raises FeatureError: some value breaks one. Retry: no.
        """
        if self._broken:
            raise FeatureError("; ".join(self._told(*broken) for broken in self._broken.items()))
        rules = {name: column.rules for name, column in self._columns.items()}
        return tuple(replace(column, rules=rules.get(column.name)) for column in columns)

    def _told(self, broken: tuple[str, str], rows: int) -> str:
        name, rule = broken
        column = self._columns[name]
        hint = (
            "the feature view has no row of some keys, or none that is young enough"
            if rule == "not_null"
            else "something was made of the field's values on the way"
        )
        return (
            f"feature {name!r} is tagged contract: {column.rules.contract!r} in features.py and breaks that "
            f"field's rule {rule} ({column.expected(rule)}) in {rows:,} of {self._rows:,} rows of the "
            f"training set: {hint}; hand the field on as it is, or take the tag away"
        )
