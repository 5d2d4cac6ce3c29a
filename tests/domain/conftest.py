"""The example's worlds, which take seconds to make: one of each a session, for tests that change nothing."""

from __future__ import annotations

import pytest
from flight_truth import Truth
from flight_world import World, three_weeks, whole_year


@pytest.fixture(scope="session")
def year(tmp_path_factory: pytest.TempPathFactory) -> World:
    return whole_year(tmp_path_factory.mktemp("year"))


@pytest.fixture(scope="session")
def truth(year: World) -> Truth:
    return Truth(year.landing)


@pytest.fixture(scope="session")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> World:
    return three_weeks(tmp_path_factory.mktemp("weeks"))
