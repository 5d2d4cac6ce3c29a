"""How often a good release is rolled back, a bad one missed, and how many bad answers it gives until then.

    python benchmarks/release_judging.py [RELEASES]

Simulated releases, a look after every batch: errors, slow answers and the scores of a challenger are compared
with those of its champion, as ``delivery.watch`` does by default. Of the releases that are within all
margins, some do not differ at all, and some are in all three metrics exactly as bad as is still accepted,
which is the hardest there is. Beside it, at the same looks, margins and levels: the usual z-test of two
shares, and the same z-test once, at the end. A random part of what is decided here is decided again by
``judge()``, and must come to the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from common import table
from numpy.typing import NDArray

from ml_lifecycle.delivery.judging import Observed, judge
from ml_lifecycle.delivery.sequential import log_wealth_of_difference
from ml_lifecycle.delivery.sides import Apart
from ml_lifecycle.delivery.tallies import Scores, Share
from ml_lifecycle.spec.watch import Watch

Array = NDArray[Any]
WATCH = Watch()
BATCH, LOOKS = 500, 800  # rows of both sides; with a look a minute thirteen hours and 400,000 rows
WEIGHTS = (0.05, 0.25, 0.5)
BINS = 10
FEW = 0.02  # what judging expects of errors and latency
CHUNKS = (0, 10, 40, 100, 300, LOOKS)  # later looks at what still has traffic then
CHECKED = 4  # decisions of a scenario that are made again, one by one
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
MARGINS = {name: criterion.margin for name, criterion in WATCH.criteria.items()}


@dataclass(frozen=True)
class Scenario:
    """The challenger's shares; the champion's are 1 %, 1 % and scores spread evenly.

    :param shift: share of the rows that score in the lower half instead of the upper one
    :param unsteady: both sides' errors rise and fall together, and come in bursts
    :param users: each has a rate of errors of his own, and is on one side for good. The sides then differ by
        who is on them, which no test of rows can tell from the challenger's doing: it is shown, and nothing
        is promised
    """

    name: str
    errors: float = 0.01
    slow: float = 0.01
    shift: float = 0.0
    unsteady: bool = False
    users: int = 0

    @property
    def worse_in(self) -> str:
        """The metric by which it is worse than its champion, the last one; none if it is as good."""
        worse = {"errors": self.errors > 0.01, "slow": self.slow > 0.01, "shift": self.shift > 0}
        return next((name for name in reversed(worse) if worse[name]), "")

    @property
    def good(self) -> bool:
        """Within all margins."""
        worse = self.errors - 0.01, self.slow - 0.01, self.shift
        return all(by <= margin + 1e-12 for by, margin in zip(worse, MARGINS.values(), strict=True))


GOOD = (
    Scenario("no difference"),
    Scenario("no difference, errors in bursts", unsteady=True),
    Scenario("exactly at all three margins", 0.015, 0.02, 0.2),
    Scenario("no difference, 3,000 users of their own rates", users=3000),
)
BAD = (
    Scenario("errors 1 % → 2 %", errors=0.02),
    Scenario("errors 1 % → 3 %", errors=0.03),
    Scenario("errors 1 % → 5 %", errors=0.05),
    Scenario("errors 1 % → 20 %", errors=0.2),
    Scenario("slow answers 1 % → 4 %", slow=0.04),
    Scenario("scores 30 % apart", shift=0.3),
)


@dataclass(frozen=True)
class Totals:
    """Of each release and look: rows and bad rows of the challenger and of the champion."""

    rows: tuple[Array, Array]
    errors: tuple[Array, Array]
    slow: tuple[Array, Array]
    below: tuple[Array, Array]  # with one axis more: the edges

    def part(self, releases: Any, looks: slice) -> Totals:
        """Some releases at some looks."""
        fields = (self.rows, self.errors, self.slow, self.below)
        return Totals(*((one[releases][:, looks], two[releases][:, looks]) for one, two in fields))

    def observed(self, release: int, look: int) -> list[Observed]:
        """One of them, as a watch has it."""

        def shares(bad: tuple[Array, Array]) -> Apart:
            both = [
                Share(int(n[release, look]), int(b[release, look]))
                for n, b in zip(self.rows, bad, strict=True)
            ]
            return Apart(*both)

        scores = [
            Scores((0, 0, *np.diff(b[release, look], prepend=0, append=n[release, look]).tolist(), 0))
            for n, b in zip(self.rows, self.below, strict=True)
        ]
        return [
            Observed("errors", shares(self.errors)),
            Observed("latency", shares(self.slow)),
            Observed("score_distribution", Apart(*scores)),
        ]


def simulate(scenario: Scenario, weight: float, releases: int, rng: np.random.Generator) -> Totals:
    """Batches whose rows go to the challenger with the probability ``weight``."""
    shape = releases, LOOKS
    shares: Any = np.full((releases, 1), weight), (scenario.errors, 0.01)
    if scenario.users:
        shares = sides_of_users(scenario.users, weight, releases, rng)
    ours = rng.binomial(BATCH, shares[0], shape)
    rows = ours, BATCH - ours
    level = np.ones(LOOKS)
    if scenario.unsteady:
        level = 1 + 0.8 * np.sin(np.arange(LOOKS) / 60)
        level = level * np.where(rng.random(shape) < 0.03, 15, 1)
    errors = [rng.binomial(n, p * level) for n, p in zip(rows, shares[1], strict=True)]
    slow = [rng.binomial(n, p) for n, p in zip(rows, (scenario.slow, 0.01), strict=True)]
    even = np.full(BINS, 1 / BINS)
    moved = even + np.repeat([2, -2], BINS // 2) * scenario.shift / BINS
    below = [
        rng.multinomial(n, p)[..., :-1].cumsum(axis=-1) for n, p in zip(rows, (moved, even), strict=True)
    ]

    def summed(pair: Any) -> tuple[Array, Array]:
        return pair[0].cumsum(axis=1), pair[1].cumsum(axis=1)

    return Totals(summed(rows), summed(errors), summed(slow), summed(below))


def sides_of_users(users: int, weight: float, releases: int, rng: np.random.Generator) -> tuple[Array, Any]:
    """The challenger's share of the traffic, and both sides' errors, by which users are on them.

    A tenth of the users have three quarters of the errors.
    """
    traffic = rng.lognormal(0, 1, (releases, users))
    errors = rng.beta(0.2, 19.8, (releases, users))
    side = rng.random((releases, users)) < weight
    rates = [
        ((traffic * errors * on).sum(axis=1) / (traffic * on).sum(axis=1))[:, None] for on in (side, ~side)
    ]
    return ((traffic * side).sum(axis=1) / traffic.sum(axis=1))[:, None], rates


Test = Callable[[Array, Array, Array, Array, float, float, float], Array]


def always_valid(
    n: Array, s: Array, m: Array, t: Array, margin: float, level: float, expected: float
) -> Array:
    """Whether the one share is shown to be above the other by more than ``margin``: ours."""
    above = s / np.maximum(n, 1) - t / np.maximum(m, 1) > margin
    n, s, m, t = (np.broadcast_to(value, above.shape)[above] for value in (n, s, m, t))
    shown = np.zeros(above.shape, bool)
    shown[above] = log_wealth_of_difference(n, s, m, t, margin, expected) >= -np.log(level)
    return shown


def z_test(n: Array, s: Array, m: Array, t: Array, margin: float, level: float, expected: float) -> Array:
    """The same by Wald's test of two shares, which is meant for one look."""
    one, two = s / np.maximum(n, 1), t / np.maximum(m, 1)
    spread = np.sqrt(one * (1 - one) / np.maximum(n, 1) + two * (1 - two) / np.maximum(m, 1))
    return np.asarray(one - two - margin > NormalDist().inv_cdf(1 - level) * spread)


def within(n: Array, s: Array, m: Array, t: Array, margin: float, expected: float) -> Array:
    """Whether the one share is shown not to be above the other by ``margin`` or more: ours."""
    below = s / np.maximum(n, 1) - t / np.maximum(m, 1) < margin
    shown: Array = log_wealth_of_difference(n, s, m, t, margin, expected) >= -np.log(WATCH.alpha)
    return np.asarray(shown & below)


def shown_worse(totals: Totals, test: Test) -> Array:
    """Whether a release is to be rolled back at each look."""
    level = WATCH.alpha / len(WATCH.criteria)
    n, m = totals.rows
    shown = test(n, totals.errors[0], m, totals.errors[1], MARGINS["errors"], level, FEW)
    shown |= test(n, totals.slow[0], m, totals.slow[1], MARGINS["latency"], level, FEW)
    edges = BINS + 2  # ten bins have eleven edges, and NaN is another
    if test is z_test:
        edges *= 2  # a z-test looks to one side
    one, two, n, m = *totals.below, n[..., None], m[..., None]
    margin = MARGINS["score_distribution"]
    for ours, theirs in ((one, two), (n - one, m - two)):
        shown |= test(n, ours, m, theirs, margin, level / edges, 0.5).any(axis=-1)
    return shown


def rolled_back(totals: Totals, test: Test) -> Array:
    """The look at which each release is rolled back; the number of looks where none is."""
    stopped = np.full(len(totals.rows[0]), LOOKS)
    for begin, end in pairwise(CHUNKS):
        running = np.flatnonzero(stopped == LOOKS)
        shown = shown_worse(totals.part(running, slice(begin, end)), test)
        stopped[running] = np.where(shown.any(axis=1), begin + shown.argmax(axis=1), LOOKS)
    return stopped


def promoted(totals: Totals) -> Array:
    """Whether each release is ever shown to be within all margins, by every fortieth look."""
    looks = totals.part(slice(None), slice(39, None, 40))
    shown = looks.rows[0] >= WATCH.min_rows
    for pair, name in ((looks.errors, "errors"), (looks.slow, "latency")):
        n, s, m, t = (side[shown] for sides in zip(looks.rows, pair, strict=True) for side in sides)
        shown[shown] = within(n, s, m, t, MARGINS[name], FEW)
    n, s, m, t = (side[shown] for sides in zip(looks.rows, looks.below, strict=True) for side in sides)
    n, m, margin = n[:, None], m[:, None], MARGINS["score_distribution"]
    up, down = within(n, s, m, t, margin, 0.5), within(n, n - s, m, m - t, margin, 0.5)
    shown[shown] = (up & down).all(axis=-1)
    return np.asarray(shown.any(axis=1))


def check(totals: Totals, stopped: Array, rng: np.random.Generator) -> None:
    """Decide some of them again, at the look of the decision and at the one before."""
    for release in rng.choice(len(stopped), CHECKED, replace=False).tolist():
        look = int(stopped[release])
        for at, worse in ((look, True), (look - 1, False)):
            if 0 <= at < LOOKS:
                judgement = judge(WATCH, totals.observed(release, at), BEGAN, BEGAN + timedelta(hours=1))
                assert (judgement.decision == "roll_back") == worse, judgement


def answers(totals: Totals, stopped: Array) -> str:
    """The challenger's answers until then, median and 95th percentile; all of them if it is never stopped."""
    at = np.arange(len(stopped)), np.minimum(stopped, LOOKS - 1)
    middle, most = np.percentile(totals.rows[0][at], [50, 95])
    return f"{middle:,.0f} ({'≥ ' if (stopped == LOOKS).mean() >= 0.05 else ''}{most:,.0f})"


def too_many(totals: Totals, stopped: Array, scenario: Scenario) -> str:
    """Of those answers, the bad ones that the champion would not have given."""
    at = np.arange(len(stopped)), np.minimum(stopped, LOOKS - 1)
    given = totals.rows[0][at]
    extra = {
        "errors": totals.errors[0][at] - 0.01 * given,
        "slow": totals.slow[0][at] - 0.01 * given,
        "shift": scenario.shift * given,
    }[scenario.worse_in]
    middle, most = np.percentile(extra, [50, 95])
    return f"{middle:,.0f} ({most:,.0f})"


def main() -> int:
    """Simulate and print; the exit code says whether the promised rates hold."""
    releases = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rng = np.random.default_rng(20260301)
    print(f"{releases} releases a row, {LOOKS} looks at {BATCH:,} rows each; alpha {WATCH.alpha:g}")
    good, bad, broken = [], [], False
    for scenario in (*GOOD, *BAD):
        for weight in WEIGHTS:
            totals = simulate(scenario, weight, releases, rng)
            ours, peeking = (rolled_back(totals, test) for test in (always_valid, z_test))
            once = shown_worse(totals.part(slice(None), slice(-1, None)), z_test)[:, 0]
            check(totals, ours, rng)
            up = float(promoted(totals).mean())
            rates = [float(rate) for rate in ((ours < LOOKS).mean(), (peeking < LOOKS).mean(), once.mean())]
            named = scenario.name, f"{weight:.0%}"
            if scenario.good:
                broken |= rates[0] > WATCH.alpha and not scenario.users
                good.append((*named, *(f"{rate:.1%}" for rate in rates), f"{up:.1%}"))
            else:
                missed = (f"{1 - rate:.1%}" for rate in rates)
                given = (answers(totals, stopped) for stopped in (ours, peeking))
                last = answers(totals, np.full(releases, LOOKS - 1))
                bad.append((*named, *missed, *given, last, too_many(totals, ours, scenario), f"{up:.1%}"))
            if scenario.worse_in:
                broken |= up > WATCH.alpha
    ways = ("always valid", "z-test at every look", "z-test at the end")
    rolled = [f"rolled back: {way}" for way in ways]
    table(("within all margins", "canary", *rolled, "promoted"), good)
    lasts = [f"its answers: {way}" for way in ways]
    header = ("worse than a margin", "canary", *(f"missed: {way}" for way in ways), *lasts)
    table((*header, "bad ones too many", "promoted in vain"), bad)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
