from __future__ import annotations

import pytest

from ml_lifecycle.settings import Settings, SettingsError

VARIABLES = {
    "ML_LIFECYCLE_DATABASE": "sqlite:////state/lifecycle.db",
    "ML_LIFECYCLE_LAKE": "/state/lake",
    "ML_LIFECYCLE_STAGING_LAKE": "/state/staging",
    "ML_LIFECYCLE_EU_WEST_LAKE": "s3://bucket/eu",
    "ML_LIFECYCLE_LAKE_OPTIONS": "not a lake",
    "OTHER": "x",
}


def test_variables_say_where_everything_is() -> None:
    settings = Settings.read(VARIABLES)
    assert settings.database == "sqlite:////state/lifecycle.db"
    assert settings.lake == "/state/lake"
    assert settings.environment_lakes == {"staging": "/state/staging", "eu_west": "s3://bucket/eu"}


def test_what_is_given_wins() -> None:
    settings = Settings.read(
        VARIABLES, database="postgresql://db/x", lake="/mine", environment_lakes={"staging": "/s", "b": "/b"}
    )
    assert (settings.database, settings.lake) == ("postgresql://db/x", "/mine")
    assert settings.environment_lakes == {"staging": "/s", "eu_west": "s3://bucket/eu", "b": "/b"}


@pytest.mark.parametrize("lake", [None, "/lake"])
def test_variables_are_read_back(lake: str | None) -> None:
    settings = Settings("sqlite:////x.db", lake, {"production": "/p"})
    assert Settings.read(settings.variables()) == settings


def test_without_a_database_it_says_how_to_name_one() -> None:
    with pytest.raises(SettingsError, match="--database URL or set ML_LIFECYCLE_DATABASE"):
        Settings.read({"ML_LIFECYCLE_DATABASE": ""})
