"""Where a lifecycle's state is, for those who look at it from outside Airflow.

Airflow's own tasks get this from Airflow's connections. A person's terminal gets it from the command line or
from the environment, which ``make up`` writes to ``.run/lifecycle.env``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ml_lifecycle.errors import LifecycleError

DATABASE_VARIABLE = "ML_LIFECYCLE_DATABASE"
LAKE_VARIABLE = "ML_LIFECYCLE_LAKE"
_ENVIRONMENT_LAKE = re.compile(r"ML_LIFECYCLE_([A-Z0-9_]+)_LAKE")


class SettingsError(LifecycleError):
    """It is not said where something is. Retry: no, say it by option or variable."""


def lake_url(given: str | None, variables: Mapping[str, str]) -> str:
    """The URL of the lake that the stages share, by option or else by variable.

    :raises SettingsError: neither says it. Retry: no.
    """
    found = given or variables.get(LAKE_VARIABLE)
    if not found:
        raise SettingsError(f"where is the lake? Give --lake URL or set {LAKE_VARIABLE}")
    return found


@dataclass(frozen=True)
class Settings:
    """URLs of the lifecycle database, of the lake the stages share, and of each environment's lake.

    :param lake: None if it is not said: what stands in the ledger alone is shown then
    """

    database: str
    lake: str | None
    environment_lakes: Mapping[str, str]

    @classmethod
    def read(
        cls,
        variables: Mapping[str, str],
        *,
        database: str | None = None,
        lake: str | None = None,
        environment_lakes: Mapping[str, str] | None = None,
    ) -> Settings:
        """What is given, and for the rest what the environment's variables say.

        :raises SettingsError: nothing says where the database is. Retry: no.
        """
        database = database or variables.get(DATABASE_VARIABLE)
        if not database:
            raise SettingsError(
                f"where is the lifecycle database? Give --database URL or set {DATABASE_VARIABLE}, "
                "e.g. sqlite:////path/to/lifecycle.db"
            )
        known = {
            match[1].lower(): url
            for name, url in sorted(variables.items())
            if url and (match := _ENVIRONMENT_LAKE.fullmatch(name))
        }
        return cls(
            database, lake or variables.get(LAKE_VARIABLE) or None, known | dict(environment_lakes or {})
        )

    def variables(self) -> dict[str, str]:
        """The variables that :meth:`read` reads them back from."""
        named = {DATABASE_VARIABLE: self.database, LAKE_VARIABLE: self.lake or ""}
        lakes = {f"ML_LIFECYCLE_{name.upper()}_LAKE": url for name, url in self.environment_lakes.items()}
        return named | lakes
