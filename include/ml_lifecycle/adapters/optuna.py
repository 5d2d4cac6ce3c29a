"""Optuna: what to try next, the study that all trials of a search share, and its pictures.

The study is a real one, kept in the lifecycle database as Optuna's own journal: :func:`open_study` gives it
to whoever wants to look further, and ``study.log`` beside a search's result is the same journal as a file,
which Optuna's JournalFileBackend and its dashboard open.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection

from ml_lifecycle.ledger.studies import append_entries, read_entries
from ml_lifecycle.metrics import LOWER_IS_BETTER
from ml_lifecycle.records import canonical_json
from ml_lifecycle.spec.search import Dimension, Search
from ml_lifecycle.training.chance import seed_of
from ml_lifecycle.training.search import TrialState, Tried

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

_MESSAGE, _JOB = "message", "job"
_STATES: dict[str, TrialState] = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "running",
}
_NAMES = {state: name for name, state in _STATES.items() if name != "WAITING"}
_FEWEST_FOR_IMPORTANCE = 4


def suggest(search: Search, seed: int, tried: Sequence[Tried], base: Mapping[str, Any]) -> Tried:
    """The next trial after ``tried``; depends on nothing but the arguments.

    Of the last ``parallel - 1`` of them it uses the parameters alone, whatever has become of them.

    :param base: the parameters that the first trial has where the space allows them
    """
    import optuna

    number = len(tried)
    known = number - search.parallel
    sampler_seed = seed_of(seed, number)
    sampler: Any = (
        optuna.samplers.TPESampler(seed=sampler_seed, multivariate=True, constant_liar=True)
        if search.sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=sampler_seed)
    )
    with _quietly():
        study = optuna.create_study(direction=_direction(search.metric), sampler=sampler)
        for trial in tried:
            study.add_trial(_frozen(search, trial, "running" if trial.number > known else trial.state))
        asked = study.ask({name: _distribution(one) for name, one in search.space.items()})
    parameters = dict(asked.params)
    if number == 0:
        parameters |= {
            name: base[name] for name, one in search.space.items() if name in base and one.allows(base[name])
        }
    return Tried(number, parameters, notes=study.trials[-1].system_attrs)


class SharedStudy:
    """A search's study, for as long as a transaction on the lifecycle database lasts; empty at first.

    :param connection: a writer's, unless it is only read
    """

    def __init__(self, connection: Connection, digest: str, search: Search) -> None:
        import optuna

        self._search = search
        self._digest = digest
        with _quietly():
            self._storage = _storage(connection, digest)
            there = self._storage.get_all_studies()
            self._study = optuna.load_study(study_name=digest, storage=self._storage) if there else None

    def tried(self) -> tuple[Tried, ...]:
        """All trials, in their order."""
        return tuple(_tried(trial) for trial in self._study.get_trials(deepcopy=False)) if self._study else ()

    def add(self, trial: Tried) -> None:
        """One more, as :func:`suggest` gave it."""
        import optuna

        if self._study is None:
            with _quietly():
                direction = _direction(self._search.metric)
                self._study = optuna.create_study(
                    study_name=self._digest, storage=self._storage, direction=direction
                )
        self._study.add_trial(_frozen(self._search, trial, "running"))

    def note_job(self, number: int, digest: str) -> None:
        """Say which job a trial's pods do."""
        self._storage.set_trial_user_attr(self._trial_id(number), _JOB, digest)

    def tell(self, trial: Tried) -> None:
        """Say what became of a trial; one that is over already stays as it was."""
        from optuna.trial import TrialState as State

        if self.tried()[trial.number].state != "running":
            return
        trial_id = self._trial_id(trial.number)
        for step, value in sorted(trial.measured.items()):
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        if trial.message:
            self._storage.set_trial_user_attr(trial_id, _MESSAGE, trial.message)
        values = [trial.value] if trial.value is not None else None
        self._storage.set_trial_state_values(trial_id, State[_NAMES[trial.state]], values)

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self._digest)
        return int(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def plots(self) -> dict[str, bytes]:
        """Pictures (PNG) by file name; those that this study can give."""
        from optuna.visualization import matplotlib as plots

        if (study := self._study) is None:
            return {}
        trials = self.tried()
        finished = sum(trial.state == "finished" for trial in trials)
        wanted: dict[str, Callable[[Study], Any]] = {"history": plots.plot_optimization_history}
        if any(trial.measured for trial in trials):
            wanted["measured"] = plots.plot_intermediate_values
        if finished > 1:
            wanted["slices"] = plots.plot_slice
        if len(self._search.space) > 1 and finished > 1:
            wanted["parallel_coordinates"] = plots.plot_parallel_coordinate
        if len(self._search.space) > 1 and finished >= _FEWEST_FOR_IMPORTANCE:
            wanted["importances"] = _importances
        with _quietly():
            drawn = {f"{name}.png": _drawn(draw, study) for name, draw in wanted.items()}
        return {name: picture for name, picture in drawn.items() if picture is not None}


def open_study(connection: Connection, digest: str) -> Study:
    """A search's study as Optuna knows it, e.g. inside ``Database.read()``, to look at while that lasts.

    :param digest: of the search, its ``digest`` on the record
    :raises KeyError: there is no such study. Retry: no.
    """
    import optuna

    return optuna.load_study(study_name=digest, storage=_storage(connection, digest))


def journal(connection: Connection, digest: str) -> bytes:
    """The study's journal in Optuna's file format: a line an entry."""
    return b"".join(canonical_json(entry) + b"\n" for entry in read_entries(connection, digest))


class _Backend:
    """What Optuna's JournalStorage asks of its backend: one that is a transaction of ours."""

    def __init__(self, connection: Connection, study: str) -> None:
        self._connection = connection
        self._study = study

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return read_entries(self._connection, self._study, log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        append_entries(self._connection, self._study, logs)


def _storage(connection: Connection, digest: str) -> JournalStorage:
    from optuna.storages import JournalStorage

    # No subclass of Optuna's: that would import it, and it takes a second, wherever this module is imported.
    return JournalStorage(cast("Any", _Backend(connection, digest)))


def _direction(metric: str) -> str:
    return "minimize" if metric in LOWER_IS_BETTER else "maximize"


def _distribution(one: Dimension) -> BaseDistribution:
    from optuna import distributions

    if one.choices is not None:
        return distributions.CategoricalDistribution(one.choices)
    assert one.low is not None
    assert one.high is not None
    if one.whole:
        step = int(one.step) if one.step is not None else 1
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log, step=step)
    return distributions.FloatDistribution(float(one.low), float(one.high), log=one.log, step=one.step)


def _frozen(search: Search, trial: Tried, state: TrialState) -> FrozenTrial:
    """The trial for Optuna; of one under way nothing is known but its parameters."""
    from optuna.trial import TrialState as State
    from optuna.trial import create_trial

    over = state != "running"
    return create_trial(
        state=State[_NAMES[state]],
        params=trial.parameters,
        distributions={name: _distribution(search.space[name]) for name in trial.parameters},
        value=trial.value if over else None,
        intermediate_values=dict(trial.measured) if over else {},
        user_attrs={_JOB: trial.job} if trial.job else {},
        system_attrs=trial.notes,
    )


def _tried(trial: FrozenTrial) -> Tried:
    return Tried(
        number=trial.number,
        parameters=dict(trial.params),
        state=_STATES[trial.state.name],
        value=trial.value,
        measured=dict(trial.intermediate_values),
        message=str(trial.user_attrs.get(_MESSAGE, "")),
        job=str(trial.user_attrs.get(_JOB, "")),
        notes=dict(trial.system_attrs),
    )


def _importances(study: Study) -> Any:
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    return plots.plot_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _drawn(draw: Callable[[Study], Any], study: Study) -> bytes | None:
    import matplotlib.pyplot as plt
    import numpy as np

    plt.switch_backend("agg")
    try:
        axes = draw(study)
        figure = (np.ravel(axes)[0] if isinstance(axes, np.ndarray) else axes).figure
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
    except (ValueError, RuntimeError) as error:  # e.g. all trials measured the same
        log.info("no plot by %s: %s", draw.__name__, error)
        return None
    finally:
        plt.close("all")
    return picture.getvalue()


@contextmanager
def _quietly() -> Iterator[None]:
    """Optuna reports each study and trial on stderr, and warns of what is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
