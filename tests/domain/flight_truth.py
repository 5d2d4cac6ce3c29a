"""The example's features told once more, in plain Python, from the raw files and the words of their meaning.

Nothing here is shared with ``features.py``: no data frames, no joins. A question is about one flight at one
moment; its answer looks at records known before that moment, or before an earlier one if the asker knew no
more (``known_before``), as an online store does that was brought up to date some time ago.
"""

from __future__ import annotations

import csv
import random
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from zoneinfo import ZoneInfo

Row = dict[str, str]

NEW_YORK = ZoneInfo("America/New_York")
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
FLOATS = (
    *("distance", "scheduled_minutes", "temperature", "humidity", "wind_speed", "visibility"),
    *("precipitation", "precipitation_6h", "origin_late_share_1d", "route_late_share_28d"),
    *("year_built", "seats"),
)
STRINGS = ("carrier", "departs_from", "destination", "manufacturer")
INTEGERS = ("departure_minute", "weekday")


@dataclass(frozen=True)
class Question:
    """A flight by its entity keys, and the moment its features are asked for."""

    flight_id: str
    origin: str
    route: str
    tailnum: str
    moment: datetime

    @property
    def keys(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("flight_id", "origin", "route", "tailnum")}


@dataclass(frozen=True)
class Landing:
    landed_at: datetime
    late: bool


class Truth:
    """Raw files below a landing folder, one version of each flight."""

    def __init__(self, landing: Path) -> None:
        self._landing = landing
        self.flights = {row["flight_id"]: row for row in _rows(landing / "flights")}
        self.planes = {row["tailnum"]: row for row in _read(landing / "planes.csv")}

    def question(self, flight_id: str, after: timedelta = timedelta(0)) -> Question:
        """The flight at the 08:00 UTC before its departure, when its day is predicted; or some time later."""
        row = self.flights[flight_id]
        departure = at(row["scheduled_departure"])
        morning = departure.replace(hour=8, minute=0, second=0)
        moment = morning if morning <= departure else morning - DAY
        route = f"{row['origin']}-{row['dest']}"
        return Question(flight_id, row["origin"], route, row["tailnum"], moment + after)

    def late(self, flight_id: str) -> tuple[int, datetime] | None:
        """The label and when it became known; None for a flight that never landed."""
        row = self.arrivals.get(flight_id)
        return None if row is None else (int(float(row["arr_delay"]) > 15), at(row["landed_at"]))

    def features(self, asked: Question, known_before: datetime | None = None) -> dict[str, object]:
        """Every feature; None where there is no value."""
        known = known_before or asked.moment
        return {
            **self._schedule(asked, known),
            **self._weather(asked, known),
            "origin_late_share_1d": self._share(self.landings_by("origin"), asked.origin, asked, known, DAY),
            "route_late_share_28d": self._share(
                self.landings_by("route"), asked.route, asked, known, 28 * DAY
            ),
            **self._plane(asked),
        }

    def _schedule(self, asked: Question, known: datetime) -> dict[str, object]:
        """What the airline published, unless that is more than three days ago."""
        row = self.flights[asked.flight_id]
        published = at(row["published_at"])
        if not (published < known and asked.moment - published <= 3 * DAY):
            return dict.fromkeys(
                (
                    *("carrier", "departs_from", "destination", "departure_minute", "weekday"),
                    *("distance", "scheduled_minutes"),
                )
            )
        local = at(row["scheduled_departure"]).astimezone(NEW_YORK)
        return {
            "carrier": row["carrier"],
            "departs_from": row["origin"],
            "destination": row["dest"],
            "departure_minute": local.hour * 60 + local.minute,
            "weekday": local.isoweekday(),
            "distance": float(row["distance"]),
            "scheduled_minutes": float(row["scheduled_minutes"]),
        }

    def _weather(self, asked: Question, known: datetime) -> dict[str, object]:
        """The newest observation at the airport, unless it is more than six hours old."""
        columns = {
            "temperature": "temp",
            "humidity": "humid",
            "wind_speed": "wind_speed",
            "visibility": "visib",
            "precipitation": "precip",
        }
        seen = self.observations.get(asked.origin, [])
        count = bisect_left(seen, known, key=lambda row: at(row["observed_at"]))
        if not count or asked.moment - at(seen[count - 1]["observed_at"]) > 6 * HOUR:
            return dict.fromkeys((*columns, "precipitation_6h"))
        newest = at(seen[count - 1]["observed_at"])
        fallen = [
            float(row["precip"])
            for row in seen[max(0, count - 50) : count]
            if row["precip"] and at(row["observed_at"]) > newest - 6 * HOUR
        ]
        now = {name: number(seen[count - 1][column]) for name, column in columns.items()}
        return {**now, "precipitation_6h": sum(fallen)}

    def _share(
        self,
        landings: dict[str, list[Landing]],
        key: str,
        asked: Question,
        known: datetime,
        span: timedelta,
    ) -> float | None:
        """How many of the landings in the ``span`` up to the newest one were late; None if that is older."""
        landed = landings.get(key, [])
        count = bisect_left(landed, known, key=lambda landing: landing.landed_at)
        if not count or asked.moment - landed[count - 1].landed_at > span:
            return None
        newest = landed[count - 1].landed_at
        late = []
        for landing in reversed(landed[:count]):
            if landing.landed_at <= newest - span:
                break
            late.append(landing.late)
        return sum(late) / len(late)

    def _plane(self, asked: Question) -> dict[str, object]:
        row = self.planes.get(asked.tailnum)
        if row is None:
            return dict.fromkeys(("manufacturer", "year_built", "seats"))
        return {
            "manufacturer": row["manufacturer"],
            "year_built": number(row["year_built"]),
            "seats": number(row["seats"]),
        }

    @cached_property
    def arrivals(self) -> dict[str, Row]:
        return {row["flight_id"]: row for row in _rows(self._landing / "arrivals")}

    @cached_property
    def observations(self) -> dict[str, list[Row]]:
        """By airport, in order."""
        found: dict[str, list[Row]] = {}
        for row in sorted(_rows(self._landing / "weather"), key=lambda row: at(row["observed_at"])):
            found.setdefault(row["origin"], []).append(row)
        return found

    def landings_by(self, key: str) -> dict[str, list[Landing]]:
        return self._landings[key]

    @cached_property
    def _landings(self) -> dict[str, dict[str, list[Landing]]]:
        """By ``origin`` and by ``route``, in order."""
        found: dict[str, dict[str, list[Landing]]] = {"origin": {}, "route": {}}
        landed = [
            (Landing(at(row["landed_at"]), float(row["arr_delay"]) > 15), self.flights[row["flight_id"]])
            for row in self.arrivals.values()
        ]
        for landing, flight in sorted(landed, key=lambda pair: pair[0].landed_at):
            found["origin"].setdefault(flight["origin"], []).append(landing)
            found["route"].setdefault(f"{flight['origin']}-{flight['dest']}", []).append(landing)
        return found

    def draw(self, count: int, seed: int) -> list[Question]:
        """Flights of the whole time, with a share of those that are hard as far as there are any."""
        chance = random.Random(seed)
        every = sorted(self.flights)
        hard: list[Sequence[str]] = [
            self._on(every, date(2013, 1, 1), date(2013, 1, 2), date(2013, 1, 3)),
            self._on(every, date(2013, 3, 10), date(2013, 11, 3)),  # clocks go forward, and back
            self._on(every, date(2013, 12, 31)),  # after the last weather
            [flight for flight in every if flight not in self.arrivals],  # cancelled or diverted
            [flight for flight in every if self.flights[flight]["tailnum"] not in self.planes],
            [flight for flight in every if not self.flights[flight]["tailnum"]],
        ]
        chosen: dict[str, None] = {}
        for flights in hard:
            chosen |= dict.fromkeys(chance.sample(flights, min(count // 12, len(flights))))
        rest = iter(chance.sample(every, len(every)))
        while len(chosen) < count:
            chosen |= {next(rest): None}
        return [self.question(flight) for flight in chosen]

    def _on(self, flights: Iterable[str], *days: date) -> list[str]:
        """The ids begin with the flight's local date."""
        return [flight for flight in flights if flight.startswith(tuple(str(day) for day in days))]


def as_served(features: dict[str, object]) -> dict[str, object]:
    """In a model's types: floats of 32 bits, and the two ways of saying that a value is missing."""
    served: dict[str, object] = {name: features[name] for name in INTEGERS}
    served |= {name: "" if features[name] is None else features[name] for name in STRINGS}
    served |= {name: single(features[name]) for name in FLOATS}
    return served


def single(value: object) -> float:
    """The nearest float of 32 bits; NaN for None."""
    rounded: float = struct.unpack("f", struct.pack("f", float("nan") if value is None else value))[0]
    return rounded


def number(text: str) -> float | None:
    return float(text) if text else None


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _rows(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("*.csv")):
        yield from _read(path)


def _read(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
