"""A search: what is tried next, what a trial sees, when it is given up, and nothing left to chance."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import polars as pl
import pytest
from tests.domain.training_world import (
    TRAIN_END,
    Trained,
    attempt_at,
    make_folder,
    make_training_set,
    run_pod,
    train_here,
)

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.optuna import SharedStudy, open_study, suggest
from ml_lifecycle.errors import (
    FeatureError,
    PodFailedError,
    PodSetupError,
    SpecError,
    StaleAttemptError,
    TrainingError,
    TrialPrunedError,
    TrialsUnderWayError,
)
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import TRAINING, Ledger
from ml_lifecycle.records import TrainingSet, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.spec.search import Dimension, Pruning
from ml_lifecycle.spec.search import Search as SearchSpec
from ml_lifecycle.stages.search import begin_trial, end_trial, finish_search, plan_search, settles
from ml_lifecycle.stages.train import collect_training, plan_training
from ml_lifecycle.training.job import TrainingJob
from ml_lifecycle.training.pod import run_attempt
from ml_lifecycle.training.search import Search, SearchPlan, TrialState, TrialTerms, Tried, bounds_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PARAMETERS = """{max_iter: 6, max_leaf_nodes: 3}
  search:
    trials: 6
    parallel: 2
    metric: log_loss
    validation: 4d
    space:
      max_iter: {low: 2, high: 12}
      learning_rate: {low: 0.01, high: 0.5, log: true}
    pruning: {percentile: 50, startup_trials: 2}"""
SPACE = SearchSpec(
    trials=30,
    parallel=3,
    metric="rmse",
    validation=timedelta(days=1),
    space={
        "depth": Dimension(low=1, high=9, step=2),
        "rate": Dimension(low=0.001, high=1.0, log=True),
        "share": Dimension(low=0.5, high=1.0),
        "kind": Dimension(choices=("a", "b", True)),
    },
)


@dataclass
class World:
    database: Database
    lake: Lake
    folder: ModelFolder
    training_set: TrainingSet
    plan: SearchPlan
    scratch: Path

    def begin(self, number: int) -> tuple[TrainingJob, Tried]:
        return begin_trial(self.folder, self.lake, self.database, self.plan, number)

    def end(self, job: TrainingJob, error: Exception | None = None) -> Tried:
        """What a trial's pod and task do; or it ends with an error."""
        ended = error or self.train(job)
        end_trial(self.folder, self.lake, self.database, self.plan, job, ended)  # type: ignore[arg-type]
        return self.tried()[job.trial.number]  # type: ignore[union-attr]

    def train(self, job: TrainingJob) -> object:
        run_attempt(self.lake, attempt_at(job), self.scratch / job.digest)
        return collect_training(self.lake, attempt_at(job))

    def finish(self) -> Search:
        return finish_search(self.folder, self.lake, self.database, self.plan, None, NOW)

    def tried(self) -> tuple[Tried, ...]:
        spec = self.folder.spec.training.search
        assert spec is not None
        with self.database.read() as connection:
            return SharedStudy(connection, self.plan.digest, spec).tried()


def world_at(place: Path, parameters: str = PARAMETERS, training: str | None = None, url: str = "") -> World:
    database = Database(url or f"sqlite:///{place}.db")
    database.migrate()
    folder = make_folder(place, parameters=parameters, training=training)
    lake = Lake(str(place / "lake"))
    training_set = make_training_set(lake, folder)
    return World(
        database, lake, folder, training_set, plan_search(folder, lake, training_set), place / "scratch"
    )


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    counter = itertools.count()
    return lambda *arguments, **named: world_at(tmp_path / str(next(counter)), *arguments, **named)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Search]:
    """A search that has come to its end."""
    world = world_at(tmp_path_factory.mktemp("searched") / "world")
    for number in range(6):
        job, tried = world.begin(number)
        assert job.parameters == {"max_iter": 6, "max_leaf_nodes": 3, **tried.parameters}
        world.end(job)
    return world, world.finish()


# What is tried next


def outcome_of(trial: Tried) -> Tried:
    """A made-up training: what comes out depends on the parameters alone; some fail."""
    depth, rate = trial.parameters["depth"], trial.parameters["rate"]
    if trial.parameters["kind"] == "b" and depth > 5:
        return replace(trial, state="failed", message="too deep")
    return replace(trial, state="finished", value=abs(depth - 4) + abs(np.log10(rate) + 2))


def play(order: random.Random) -> list[Tried]:
    """A study whose trials end in any order that `parallel` allows."""
    tried: list[Tried] = []
    running: list[int] = []
    while len(tried) < SPACE.trials or running:
        over = {trial.number for trial in tried if trial.state != "running"}
        known = set(range(len(tried) - SPACE.parallel + 1))
        may_begin = len(tried) < SPACE.trials and known <= over
        if may_begin and (not running or order.random() < 0.5):
            running.append(len(tried))
            tried.append(suggest(SPACE, 7, tried, {"rate": 0.5}))
        else:
            number = running.pop(order.randrange(len(running)))
            tried[number] = outcome_of(tried[number])
    return tried


def test_the_same_is_tried_in_whatever_order_trials_end() -> None:
    plays = [play(random.Random(seed)) for seed in range(5)]
    assert all(one == plays[0] for one in plays)
    assert len({str(trial.parameters) for trial in plays[0]}) > 20
    assert {trial.state for trial in plays[0]} == {"finished", "failed"}


def test_a_search_learns_from_its_trials() -> None:
    tried = play(random.Random(0))
    values = [trial.value for trial in tried if trial.value is not None]
    assert np.mean(values[-8:]) < np.mean(values[:8])
    assert min(values) < 1.5


def test_the_first_trial_has_the_specs_own_parameters_where_the_space_allows() -> None:
    base = {"depth": 3, "rate": 0.25, "kind": True, "share": 7.0, "other": 1}
    first = suggest(SPACE, 7, [], base)
    assert {name: first.parameters[name] for name in ("depth", "rate", "kind")} == {
        "depth": 3,
        "rate": 0.25,
        "kind": True,
    }
    assert 0.5 <= first.parameters["share"] <= 1.0, "7 is not in the space: the sampler's"
    assert "other" not in first.parameters


@pytest.mark.parametrize(
    ("dimension", "values", "others"),
    [
        ({"low": 1, "high": 9, "step": 2}, [1, 3, 9], [2, 0, 11, 3.0, True, "3"]),
        ({"low": 0.0, "high": 1.0, "step": 0.1}, [0.0, 0.3, 0.7, 1, 1.0], [0.35, 1.1, "0.3"]),
        ({"low": 1e-4, "high": 1, "log": True}, [0.01, 1, 1e-4], [0, 2]),
        ({"choices": ["a", 1, False]}, ["a", 1, False], ["b", 1.0, True, 2, 0]),
    ],
)
def test_what_a_dimension_allows(dimension: dict, values: list, others: list) -> None:
    one = Dimension.model_validate(dimension)
    assert [value for value in values if not one.allows(value)] == []
    assert [value for value in others if one.allows(value)] == []
    search = SPACE.model_copy(update={"space": {"x": one}, "sampler": "random"})
    tried: list[Tried] = []
    for _ in range(20):
        tried.append(replace(suggest(search, 1, tried, {}), state="finished", value=1.0))
    assert all(one.allows(trial.parameters["x"]) for trial in tried)


# When a trial is given up

STATES: dict[str, TrialState] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_bounds_decide_as_optunas_percentile_pruner(metric: str) -> None:
    decisions = [decision for seed in range(10) for decision in both_decide(metric, seed)]
    assert all(ours == optunas for ours, optunas in decisions)
    assert {ours for ours, _ in decisions} == {True, False}


def both_decide(metric: str, seed: int) -> Iterator[tuple[bool, bool]]:
    """Whether made-up trials are given up, step by step: by our bounds, and by Optuna after the same."""
    chance = np.random.default_rng(seed)
    pruning = Pruning(percentile=float(chance.integers(10, 90)), startup_trials=3, warmup_steps=4)
    steps = [2, 4, 6, 8, 10]
    pruner = optuna.pruners.PercentilePruner(
        pruning.percentile, n_startup_trials=3, n_warmup_steps=4, n_min_trials=3
    )
    study = optuna.create_study(direction="minimize" if metric == "rmse" else "maximize", pruner=pruner)
    tried = []
    for number in range(20):
        state = chance.choice(["COMPLETE", "PRUNED", "FAIL"], p=[0.7, 0.15, 0.15])
        value = 1.0 if state == "COMPLETE" else None
        measured = {step: float(chance.normal()) for step in steps if chance.random() < 0.6}
        tried.append(Tried(number, {}, STATES[state], value, measured))
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState[state], value=value, intermediate_values=measured
        )
        study.add_trial(trial)
    terms = TrialTerms("s", 20, metric, bounds_of(pruning, metric, tried))
    for _ in range(20):
        asked, so_far = study.ask(), {}
        for step in steps:
            so_far[step] = float(chance.normal())
            asked.report(so_far[step], step)
            yield terms.is_hopeless(so_far), asked.should_prune()
        study.tell(asked, state=optuna.trial.TrialState.FAIL)


# A whole search


def test_a_search_ends_with_the_best_parameters(searched: tuple[World, Search]) -> None:
    world, found = searched
    assert found.trials == {"finished": 6}
    values = {trial.number: trial.value for trial in world.tried()}
    assert found.value == min(values.values()) == values[found.number]
    assert found.baseline == values[0]
    assert found.value < found.baseline
    assert world.tried()[0].parameters["max_iter"] == 6, "the spec's own come first"

    best = plan_training(world.folder, world.lake, world.training_set, search=found)
    assert best.parameters == found.parameters
    assert best.search_path == found.path
    assert best.trial is None
    assert best.digest != plan_training(world.folder, world.lake, world.training_set).digest

    assert finish_search(world.folder, world.lake, world.database, world.plan, None, NOW) == found
    costs = [entry for entry in Ledger(world.database).entries() if entry.kind == TRAINING]
    assert len(costs) == 1, "a second call writes nothing"


def test_the_study_is_optunas_own(searched: tuple[World, Search], tmp_path: Path) -> None:
    world, found = searched
    with world.database.read() as connection:
        study = open_study(connection, world.plan.digest)
        assert study.best_params.items() <= found.parameters.items()
        assert study.best_value == found.value
        assert len(study.trials) == 6
    for name, digest in found.files.items():
        assert world.lake.read_bytes(f"{found.path}/{name}", digest)
    local = tmp_path / "study.log"
    local.write_bytes(world.lake.read_bytes(f"{found.path}/study.log"))
    backend = optuna.storages.journal.JournalFileBackend(str(local))
    again = optuna.load_study(study_name=found.digest, storage=optuna.storages.JournalStorage(backend))
    assert again.best_value == found.value
    pictures = [name for name in found.files if name.endswith(".png")]
    assert {"history.png", "slices.png", "parallel_coordinates.png", "importances.png"} <= {*pictures}
    assert all(world.lake.read_bytes(f"{found.path}/{name}")[:4] == b"\x89PNG" for name in pictures)


def test_a_trial_sees_training_rows_only_and_is_measured_later(make_world: Callable[..., World]) -> None:
    world = make_world()
    split = from_json(TrainingSet, world.lake.read_json(world.plan.split_path))
    parts = {
        name: pl.read_parquet(io.BytesIO(world.lake.read_bytes(path)))
        for name, path in (
            ("all", world.training_set.train_path),
            ("train", split.train_path),
            ("holdout", split.holdout_path),
        )
    }
    moment = "event_timestamp"
    assert parts["holdout"][moment].min() >= TRAIN_END - timedelta(days=4)
    assert parts["holdout"][moment].max() == parts["all"][moment].max()
    delay = timedelta(hours=24)
    assert parts["train"][moment].max() < parts["holdout"][moment].min() - delay
    assert parts["train"][moment].min() == parts["all"][moment].min()
    assert parts["holdout"].height == split.holdout_rows == 4 * 24
    assert parts["train"].height == split.train_rows == 400 - 5 * 24
    job, _ = world.begin(0)
    assert (job.training_set_path, job.training_set_digest) == (world.plan.split_path, split.digest)


def test_trials_wait_for_those_they_learn_from_and_no_others(make_world: Callable[..., World]) -> None:
    world = make_world()
    with pytest.raises(TrialsUnderWayError, match="trial 3 learns from trial 0, 1, which") as caught:
        world.begin(3)
    assert caught.value.waited_for == (0, 1)
    first, _ = world.begin(0)
    world.begin(1)
    world.end(first, TrialPrunedError("worse"))
    world.begin(2)
    with pytest.raises(TrialsUnderWayError, match="trial 3 learns from trial 1, which"):
        world.begin(3)
    world.end(world.begin(1)[0], TrialPrunedError("worse"))
    world.begin(3)
    assert [trial.state for trial in world.tried()] == ["pruned", "pruned", "running", "running"]


def test_whoever_comes_first_adds_the_trials_before_its_own(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.begin(1)
    assert [(trial.number, trial.job == "") for trial in world.tried()] == [(0, True), (1, False)]
    first = world.tried()[0]
    assert world.begin(0)[1].parameters == first.parameters


def test_a_trial_that_is_begun_again_is_the_same(make_world: Callable[..., World]) -> None:
    world = make_world()
    job, tried = world.begin(0)
    assert world.begin(0)[0] == job
    assert len(world.tried()) == 1
    world.end(job)
    again, known = world.begin(0)
    assert again == job
    assert known.state == "finished"
    assert known.parameters == tried.parameters
    world.end(job, TrainingError("later"))
    assert world.tried()[0] == known, "what is over stays as it was"


def test_two_that_begin_at_once_add_one_trial(make_world: Callable[..., World], database_url: str) -> None:
    world = make_world(url=database_url)
    with ThreadPoolExecutor(4) as pool:
        begun = list(pool.map(world.begin, [0, 1, 0, 1]))
    assert begun[0][0] == begun[2][0]
    assert begun[1][0] == begun[3][0]
    assert [trial.number for trial in world.tried()] == [0, 1]


def test_another_database_tries_the_same(make_world: Callable[..., World], database_url: str) -> None:
    worlds = [make_world(), make_world(url=database_url)]
    for world, order in zip(worlds, ([0, 1], [1, 0]), strict=True):
        jobs = [world.begin(number)[0] for number in range(2)]
        for number in order:
            world.end(jobs[number], None if number == 0 else TrialPrunedError("worse"))
        world.begin(3)
    assert worlds[0].plan.digest == worlds[1].plan.digest
    parameters = [[trial.parameters for trial in world.tried()] for world in worlds]
    assert parameters[0] == parameters[1]


SOMETIMES = """
from sklearn.ensemble import RandomForestClassifier

def train(training_set, labels, parameters, seed):
    if parameters["max_iter"] != 6:
        raise ValueError("only six will do")
    columns = [name for name in training_set if name not in ("carrier", "wind")]
    from sklearn.pipeline import make_pipeline
    from sklearn.compose import make_column_transformer
    chosen = make_column_transformer(("passthrough", columns))
    return make_pipeline(chosen, RandomForestClassifier(2, random_state=seed)).fit(training_set, labels)
"""


def test_trials_that_fail_are_told_and_the_search_goes_on(make_world: Callable[..., World]) -> None:
    world = make_world(training=SOMETIMES)
    for number in range(6):
        job, tried = world.begin(number)
        if tried.parameters["max_iter"] == 6:
            world.end(job)
            continue
        with pytest.raises(TrainingError, match="only six will do") as caught:
            world.train(job)
        assert settles(caught.value)
        ended = world.end(job, caught.value)
        assert ended.state == "failed"
        assert "only six will do" in ended.message
    found = world.finish()
    assert found.trials["failed"] > 0
    assert found.parameters["max_iter"] == 6


def test_a_search_whose_first_trials_all_fail_ends(make_world: Callable[..., World]) -> None:
    world = make_world()
    for number in range(5):
        world.end(world.begin(number)[0], TrainingError("no such column"))
    with pytest.raises(TrainingError, match=r"of 5 trials none finished; trial 0 with .*no such column"):
        world.begin(5)


def test_one_that_did_not_fail_is_enough_to_go_on(make_world: Callable[..., World]) -> None:
    world = make_world()
    for number in range(5):
        error = TrialPrunedError("worse") if number == 3 else TrainingError("too deep")
        world.end(world.begin(number)[0], error)
    world.begin(5)


def test_what_a_trial_leaves_is_its_result_not_its_checkpoints(make_world: Callable[..., World]) -> None:
    world = make_world()
    job, _ = world.begin(0)
    world.lake.write_bytes(f"{job.checkpoints_path}/left", b"by a pod that was given up")
    world.end(job, TrialPrunedError("worse"))
    assert list(world.lake.list(job.checkpoints_path)) == []


def test_another_version_of_the_spec_is_another_search(make_world: Callable[..., World]) -> None:
    world = make_world()
    later = plan_search(replace(world.folder, spec_digest="1" * 64), world.lake, world.training_set)
    assert later.digest != world.plan.digest
    assert from_json(SearchPlan, world.lake.read_json(f"{later.path}/manifest.json")) == later


@pytest.mark.parametrize(
    "error",
    [PodFailedError("gone"), StaleAttemptError("old"), PodSetupError("no image"), FeatureError("no rows")],
)
def test_what_no_parameters_are_to_blame_for_ends_no_trial(error: Exception) -> None:
    assert not settles(error)


def test_a_search_with_open_trials_says_which(make_world: Callable[..., World]) -> None:
    world = make_world()
    with pytest.raises(PodFailedError, match=r"6 of 6 trials have not ended \(0, 1, 2, 3, 4, 5\)"):
        world.finish()
    world.end(world.begin(0)[0])
    world.begin(1)
    with pytest.raises(PodFailedError, match=r"5 of 6 trials have not ended \(1, 2, 3, 4, 5\)"):
        world.finish()


def test_a_folder_that_changed_since_is_another_search(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.begin(0)
    world.folder = replace(world.folder, code_digest="0" * 64)
    with pytest.raises(SpecError, match="changed since the search was planned"):
        world.begin(1)


@pytest.mark.parametrize(("validation", "what"), [("17d", "to train on"), ("16d", "to train on")])
def test_a_validation_that_leaves_nothing_is_refused(
    make_world: Callable[..., World], validation: str, what: str
) -> None:
    with pytest.raises(FeatureError, match=f"training.search.validation.*no rows {what}"):
        make_world(PARAMETERS.replace("validation: 4d", f"validation: {validation}"))


# Measured while it trains

GROWING = """
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.compose import make_column_transformer

from ml_lifecycle.training.frameworks import fit_in_segments


def train(training_set, labels, parameters, seed, checkpoints):
    numbers = ["distance", "wind", "hour", "weekend"]
    encode = make_column_transformer((SimpleImputer(), numbers))
    columns = encode.fit_transform(training_set)
    estimator = GradientBoostingClassifier(
        n_estimators=12, learning_rate=parameters["learning_rate"], max_depth=2, random_state=seed
    )
    from sklearn.pipeline import make_pipeline
    model = fit_in_segments(estimator, columns, labels, checkpoints, every=4, before=encode)
    return make_pipeline(encode, model)
"""
MEASURED = """{learning_rate: 0.3}
  search:
    trials: 4
    metric: log_loss
    validation: 4d
    space: {learning_rate: {low: 0.0000001, high: 0.5, log: true}}
    pruning: {startup_trials: 1}"""


def hopeless(world: World) -> tuple[TrainingJob, Tried]:
    """After a first good trial, one that learns next to nothing."""
    world.end(world.begin(0)[0])
    assert sorted(world.tried()[0].measured) == [4, 8, 12]
    for number in range(1, 4):
        job, tried = world.begin(number)
        if tried.parameters["learning_rate"] < 0.01:
            return job, tried
        world.end(job)
    raise AssertionError("the sampler tried good ones only")


def test_a_bad_trial_is_given_up_while_it_trains(make_world: Callable[..., World]) -> None:
    world = make_world(MEASURED, GROWING)
    job, _ = hopeless(world)
    run = run_pod(world.lake, job)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "pruned: given up at step 4: log_loss is" in run.stdout
    with pytest.raises(TrialPrunedError, match="given up at step 4") as caught:
        collect_training(world.lake, attempt_at(job))
    ended = world.end(job, caught.value)
    assert ended.state == "pruned"
    assert list(ended.measured) == [4]
    assert ended.value == ended.measured[4]


def test_without_pruning_it_trains_to_its_end(make_world: Callable[..., World]) -> None:
    world = make_world(MEASURED.replace("{startup_trials: 1}", "null"), GROWING)
    job, _ = hopeless(world)
    ended = world.end(job)
    assert ended.state == "finished"
    assert sorted(ended.measured) == [4, 8, 12]


def test_a_trial_ends_in_the_model_of_the_same_training(make_world: Callable[..., World]) -> None:
    """Whatever is measured in between."""
    world = make_world(MEASURED, GROWING)
    job, _ = world.begin(0)
    world.end(job)
    split = from_json(TrainingSet, world.lake.read_json(world.plan.split_path))
    plain: Trained = train_here(world.lake, world.folder, world.scratch, split)
    trial = collect_training(world.lake, attempt_at(job))
    assert plain.training.digest != trial.digest
    assert plain.training.model_digest == trial.model_digest
    assert not world.lake.exists(f"{plain.training.path}/measured")


MISUSED = GROWING.replace(", before=encode", "")


def test_an_estimator_that_cannot_answer_such_rows_is_said(make_world: Callable[..., World]) -> None:
    world = make_world(MEASURED, MISUSED)
    job, _ = world.begin(0)
    assert run_pod(world.lake, job).returncode == 1
    with pytest.raises(TrainingError, match=r"checkpoints\.measure\(\): the estimator does not answer"):
        collect_training(world.lake, attempt_at(job))


def test_records_read_back(make_world: Callable[..., World]) -> None:
    world = make_world(MEASURED, GROWING)
    job, _ = world.begin(0)
    assert from_json(TrainingJob, world.lake.read_json(job.job_path)) == job
    assert from_json(SearchPlan, to_json(world.plan)) == world.plan
