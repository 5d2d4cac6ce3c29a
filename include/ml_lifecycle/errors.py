"""Every error the project raises on purpose.

Each class says when it is raised and whether a retry helps; ``retryable`` tells the operators the same.
A message says what is wrong, where, and what would be right.
"""

from __future__ import annotations


class LifecycleError(Exception):
    """Base of all errors below. A retry does not help unless a subclass says so."""

    retryable = False


class SpecError(LifecycleError):
    """A model folder is malformed: an unknown key, a wrong type, a missing file. Retry: no, edit the file."""


class UnsafeNameError(LifecycleError):
    """A name that would become a path or an identifier has characters it may not have. Retry: no."""


class SourceError(LifecycleError):
    """A source file is torn, unreadable or lacks a declared column. Retry: no, the file must be replaced."""


class SourceNotReadyError(LifecycleError):
    """A source has no data for the interval yet. Retry: yes, when it has arrived."""

    retryable = True


class DataHaltedError(LifecycleError):
    """A contract rule that halts was broken; the snapshot is quarantined. Retry: no, the data must change."""


class ContractBreaksError(LifecycleError):
    """A contract breaks the last one under the same major version. Retry: no, raise it or take that back."""


class FeatureError(LifecycleError):
    """Features cannot be built or read as declared: a missing view, column or key. Retry: no."""


class TrainingError(LifecycleError):
    """The user's training code raised or returned something that is no estimator. Retry: no, it is code."""


class StaleAttemptError(LifecycleError):
    """A newer attempt at a training has begun: this one may publish nothing. Retry: no, that one goes on."""


class PodFailedError(LifecycleError):
    """A pod ended without its manifest for no fault of the user's code: evicted, killed. Retry: yes."""

    retryable = True


class PodSetupError(LifecycleError):
    """A pod can never start as it is asked for: no such image, command or secret. Retry: no."""


class TrialPrunedError(LifecycleError):
    """A trial of a search measures worse than those before it, and is given up. Retry: no."""


class TrialsUnderWayError(LifecycleError):
    """A trial learns from others that have not ended yet. Retry: yes, when they have.

    :param waited_for: their numbers
    """

    retryable = True

    def __init__(self, message: str, waited_for: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.waited_for = waited_for


class UnschedulableError(LifecycleError):
    """No node had room for a pod in time. Retry: yes, when other pods have ended."""

    retryable = True


class NeverSchedulableError(LifecycleError):
    """No node could run a pod even if it were empty. Retry: no, ask for less or make larger nodes."""


class SparkSetupError(LifecycleError):
    """Spark cannot be started here: PySpark, Java or a library is missing. Retry: no, install it."""


class ConversionError(LifecycleError):
    """An estimator does not convert to ONNX, or answers differently once converted. Retry: no."""


class GateError(LifecycleError):
    """A candidate missed a gate, or a gate could not be computed. Retry: no, train another model."""


class ApprovalError(LifecycleError):
    """Nobody may approve, the request was rejected or timed out, or it is for other evidence. Retry: no."""


class NotApprovedError(LifecycleError):
    """The ledger holds no approval for exactly this evidence. Retry: no, ask for approval."""


class NotConfirmedError(LifecycleError):
    """An environment has not confirmed what it should serve by now. Retry: no, deploy there first."""


class RecordMismatchError(LifecycleError):
    """A record from another task is not the one in the lake. Retry: no, clear the task that returned it."""


class ChampionChangedError(LifecycleError):
    """Another version became champion after the evidence was made. Retry: no, evaluate against it again."""


class LedgerError(LifecycleError):
    """The ledger's hash chain does not verify. Retry: no, somebody rewrote a row."""


class ReleaseConflictError(LifecycleError):
    """Another release of the endpoint was applied at the same time and won. Retry: no."""


class ReleaseUnderWayError(ReleaseConflictError):
    """Another release of the endpoint has begun and not ended yet. Retry: yes, once it has."""

    retryable = True


class ReleaseWatchedError(ReleaseUnderWayError):
    """Another release of the endpoint is watched, for hours or days. Retry: yes, once it has ended.

    :param left_alone: nobody looks at it any more: it will not end by itself
    """

    def __init__(self, message: str, left_alone: bool = False) -> None:
        super().__init__(message)
        self.left_alone = left_alone


class ReleaseChecksError(LifecycleError):
    """The checks against the running server failed and the release was rolled back. Retry: no."""


class RollbackTargetError(LifecycleError):
    """What should be served again fails its checks; what was live is live. Retry: no."""


class NothingToRollBackToError(LifecycleError):
    """No earlier confirmed release exists. Retry: no."""


class ServerUnavailableError(LifecycleError):
    """A model server, MLflow or the lake did not answer. Retry: yes."""

    retryable = True


class OnlineStoreUnavailableError(LifecycleError):
    """An online store cannot be used now: locked, or without room. Retry: yes, what is missing is written."""

    retryable = True


class CanaryError(LifecycleError):
    """What was just written to an online store is read differently. Retry: yes, it is written again."""

    retryable = True


class IntegrityError(LifecycleError):
    """Bytes in the lake do not have the digest that names them. Retry: no, they were altered or torn."""


class NoSpaceError(LifecycleError):
    """A disk or a quota has no room left; what was there is unchanged. Retry: yes, when there is room."""

    retryable = True
