"""The typed form of ``training.search``: what is tried out, how often, and when it is given up."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ml_lifecycle.spec.types import FieldError, Name, PositiveDuration, Strict, Text

_ROUNDING = 1e-8  # of a step, in floating point


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")  # noqa: TRY004 - what Pydantic takes
    return value


Number = Annotated[int | float, Field(allow_inf_nan=False), BeforeValidator(_no_truth_value)]
Value = bool | int | float | str


class Dimension(Strict):
    """What one parameter may be: one of ``choices``, or a number between ``low`` and ``high``, both included.

    :param low: whole numbers here and in ``high`` make it a whole number
    :param log: as likely between 0.001 and 0.01 as between 0.01 and 0.1
    :param step: from ``low`` on in steps of this
    """

    choices: tuple[Value, ...] | None = Field(default=None, min_length=1)
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    step: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _choices_or_numbers(self) -> Dimension:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise FieldError("choices", "goes without low, high, log and step")
            if twice := [one for place, one in enumerate(self.choices) if one in self.choices[:place]]:
                raise FieldError("choices", f"{twice[0]!r} is there twice; true counts as 1, and false as 0")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs choices, or low and high")
        if self.low > self.high:
            raise FieldError("low", f"{self.low:g} is above high ({self.high:g})")
        if self.log and self.step is not None:
            raise FieldError("step", "goes without log")
        if self.log and self.low <= 0:
            raise FieldError("low", "must be above 0 with log")
        if self.whole and self.step is not None and self.step != int(self.step):
            raise FieldError("step", "must be a whole number, as low and high are")
        if not self.allows(self.high if self.whole else float(self.high)):
            raise FieldError("step", f"{self.high:g} is not {self.low:g} and so many steps of {self.step:g}")
        return self

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def allows(self, value: Any) -> bool:
        """Whether it may have this value."""
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return self.low <= value <= self.high and abs(steps - round(steps)) < _ROUNDING


class Pruning(Strict):
    """When a trial is given up while it still trains.

    A trial that measures itself, see ``checkpoints.measure()``, is compared at each step with what the
    finished trials it learns from had measured there, by the percentile rule of Vizier's median stopping
    (Golovin et al., KDD 2017): its best value so far against theirs at that step.

    :param percentile: of those values, the better ones first, which it must not be worse than; 50 is their
        median
    :param startup_trials: so many finished trials must have measured the step
    :param warmup_steps: no trial is given up before this step
    """

    percentile: float = Field(default=50.0, gt=0, lt=100)
    startup_trials: int = Field(default=5, ge=1)
    warmup_steps: int = Field(default=0, ge=0)


class Search(Strict):
    """Parameters are tried out before the model is trained with the best of them.

    Each trial is a pod that trains on all but the newest training rows, and is measured on those. The first
    one has the parameters that ``training.parameters`` says, where the space allows them.

    :param trials: how many
    :param parallel: how many at once. A trial learns from those that began so many before it, whichever
        have ended: the same search tries the same parameters, however long each trial takes
    :param metric: what the best is best by, e.g. ``log_loss``, ``roc_auc``, ``rmse``
    :param validation: length of the newest span of training rows that trials are measured on. It begins
        ``labels.delay`` after the rows that they train on, whose labels count as known by then; the holdout
        is not touched
    :param space: what each of ``training.parameters``, or a further one, may be
    :param sampler: how parameters are chosen: by what went well (Tree-structured Parzen Estimator), or at
        random
    :param pruning: null trains every trial to its end
    """

    trials: int = Field(ge=1, le=1000)
    parallel: int = Field(default=1, ge=1, le=100)
    metric: Name
    validation: PositiveDuration
    space: dict[Text, Dimension] = Field(min_length=1)
    sampler: Literal["tpe", "random"] = "tpe"
    pruning: Pruning | None = Pruning()
