"""Amazon SageMaker, as far as endpoints need it: what boto3's clients are asked, and what errors mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ml_lifecycle.errors import LifecycleError, ServerUnavailableError

# Of AWS's common errors those that pass by themselves, beside every 5xx.
_PASSING = frozenset(
    ("Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable")
)
# SageMaker's code for both is ValidationException; only its words tell them from a wrong request.
_ABSENT = "Could not find"
_PRESENT = "Cannot create already existing"


class SageMakerRefusedError(LifecycleError):
    """SageMaker will not do it: no right, no quota, no such role, image or machine. Retry: no."""


class SageMakerAbsentError(SageMakerRefusedError):
    """What was asked about is not there. Retry: no."""


class ContainerRefusedError(LifecycleError):
    """A variant's container answered with an error of the caller's. Retry: no.

    :param status: the HTTP status
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class EndpointState:
    """An endpoint as SageMaker describes it.

    :param config: the endpoint configuration that serves, or is to serve once it is created
    :param status: SageMaker's own word
    :param reason: why the last change failed, if it did
    """

    config: str
    status: str
    reason: str | None = None

    @property
    def changing(self) -> bool:
        """Whether nothing can be asked of it now but to wait."""
        return self.status in ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


@dataclass(frozen=True)
class ConfiguredVariant:
    """A variant of an endpoint configuration."""

    model: str
    instance_type: str
    instances: int


@dataclass(frozen=True)
class Container:
    """What a model runs."""

    role: str
    image: str
    variables: Mapping[str, str]


class SageMakerApi:
    """The calls. Making what is there and deleting what is not changes nothing, as names say their content.

    :param control: boto3's client for ``sagemaker``
    :param runtime: boto3's client for ``sagemaker-runtime``
    """

    def __init__(self, control: Any, runtime: Any) -> None:
        self._control = control
        self._runtime = runtime

    @classmethod
    def connect(cls, region: str) -> SageMakerApi:
        """By the credentials that AWS's own tools would take here: variables, files, or the machine's role.

        :raises SageMakerRefusedError: what they say of them cannot be used. Retry: no.
        :raises ImportError: boto3 is not installed.
        """
        import boto3

        with _translated("connect"):
            session = boto3.Session(region_name=region)
            return cls(session.client("sagemaker"), session.client("sagemaker-runtime"))

    @property
    def region(self) -> str:
        """Where the endpoints are."""
        return str(self._control.meta.region_name)

    def check(self) -> None:
        """Return if SageMaker answers.

        :raises ServerUnavailableError: it does not. Retry: yes.
        :raises SageMakerRefusedError: it does not know the credentials, or they have no right. Retry: no.
        """
        with _translated("list endpoint configurations"):
            self._control.list_endpoint_configs(MaxResults=1)

    def endpoint(self, name: str) -> EndpointState | None:
        """How an endpoint is; None if there is none. Errors as in :meth:`check`."""
        try:
            with _translated(f"describe endpoint {name}"):
                found = self._control.describe_endpoint(EndpointName=name)
        except SageMakerAbsentError:
            return None
        return EndpointState(
            found["EndpointConfigName"], found["EndpointStatus"], found.get("FailureReason") or None
        )

    def create_model(self, name: str, role: str, image: str, variables: Mapping[str, str]) -> None:
        """Make a model: an image with variables. Errors as in :meth:`check`."""
        with _translated(f"create model {name}", tolerated=_PRESENT):
            self._control.create_model(
                ModelName=name,
                ExecutionRoleArn=role,
                PrimaryContainer={"Image": image, "Environment": dict(variables)},
            )

    def create_config(
        self, name: str, variants: Sequence[Mapping[str, Any]], shadows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Make an endpoint configuration. Errors as in :meth:`check`."""
        more = {"ShadowProductionVariants": list(shadows)} if shadows else {}
        with _translated(f"create endpoint configuration {name}", tolerated=_PRESENT):
            self._control.create_endpoint_config(
                EndpointConfigName=name, ProductionVariants=list(variants), **more
            )

    def variants(self, config: str) -> dict[str, ConfiguredVariant]:
        """The variants of an endpoint configuration by name. Errors as in :meth:`check`."""
        with _translated(f"describe endpoint configuration {config}"):
            found = self._control.describe_endpoint_config(EndpointConfigName=config)
        described = [*found["ProductionVariants"], *(found.get("ShadowProductionVariants") or ())]
        return {
            one["VariantName"]: ConfiguredVariant(
                one["ModelName"], one["InstanceType"], one["InitialInstanceCount"]
            )
            for one in described
        }

    def container(self, model: str) -> Container:
        """What a model runs. Errors as in :meth:`check`."""
        with _translated(f"describe model {model}"):
            found = self._control.describe_model(ModelName=model)
        container = found["PrimaryContainer"]
        return Container(found["ExecutionRoleArn"], container["Image"], container.get("Environment") or {})

    def create_endpoint(self, name: str, config: str) -> None:
        """Have an endpoint made. Errors as in :meth:`check`."""
        with _translated(f"create endpoint {name}", tolerated=_PRESENT):
            self._control.create_endpoint(EndpointName=name, EndpointConfigName=config)

    def update_endpoint(self, name: str, config: str) -> None:
        """Have an endpoint changed: machines beside those that serve, then all traffic at once.

        The weights are the configuration's. No alarm takes it back: whether a release stays is decided here.
        Errors as in :meth:`check`.
        """
        with _translated(f"update endpoint {name}"):
            self._control.update_endpoint(
                EndpointName=name, EndpointConfigName=config, RetainAllVariantProperties=False
            )

    def delete_endpoint(self, name: str) -> None:
        """Have an endpoint deleted. Errors as in :meth:`check`."""
        with _translated(f"delete endpoint {name}", tolerated=_ABSENT):
            self._control.delete_endpoint(EndpointName=name)

    def configs(self, containing: str) -> list[str]:
        """Names of endpoint configurations that contain a text. Errors as in :meth:`check`."""
        return self._names("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", containing)

    def models(self, containing: str) -> list[str]:
        """Names of models that contain a text. Errors as in :meth:`check`."""
        return self._names("list_models", "Models", "ModelName", containing)

    def delete_config(self, name: str) -> None:
        """Delete an endpoint configuration. Errors as in :meth:`check`."""
        with _translated(f"delete endpoint configuration {name}", tolerated=_ABSENT):
            self._control.delete_endpoint_config(EndpointConfigName=name)

    def delete_model(self, name: str) -> None:
        """Delete a model. Errors as in :meth:`check`."""
        with _translated(f"delete model {name}", tolerated=_ABSENT):
            self._control.delete_model(ModelName=name)

    def invoke(self, endpoint: str, body: bytes, variant: str | None, attributes: str | None = None) -> bytes:
        """What a container answers.

        :param variant: the one to ask; None for one that SageMaker draws
        :param attributes: told to the container beside the body
        :raises ContainerRefusedError: it answers 4xx. Retry: no.
        :raises ServerUnavailableError: it answers 5xx or not at all. Retry: yes.
        :raises SageMakerRefusedError: SageMaker does not let the request through. Retry: no.
        """
        asked = {"TargetVariant": variant, "CustomAttributes": attributes}
        with _translated(f"invoke endpoint {endpoint}"):
            response = self._runtime.invoke_endpoint(
                EndpointName=endpoint,
                ContentType="application/json",
                Body=body,
                **{name: value for name, value in asked.items() if value is not None},
            )
            answer: bytes = response["Body"].read()
        return answer

    def _names(self, operation: str, key: str, name: str, containing: str) -> list[str]:
        with _translated(operation.replace("_", " ")):
            pages = self._control.get_paginator(operation).paginate(NameContains=containing)
            return [str(found[name]) for page in pages for found in page[key]]


@contextmanager
def _translated(what: str, tolerated: str | None = None) -> Iterator[None]:
    """Raise boto3's errors as ours.

    :param tolerated: how the message of an error begins that says that there is nothing to do
    """
    from botocore import exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        if tolerated is None or not error.response["Error"]["Message"].startswith(tolerated):
            raise _error_of(what, error.response) from error
    except (aws.ConnectionError, aws.HTTPClientError) as error:
        raise ServerUnavailableError(f"SageMaker, {what}: {error}") from error
    except aws.BotoCoreError as error:  # no credentials, no region, a value that it knows to be wrong
        raise SageMakerRefusedError(f"SageMaker, {what}: {error}") from error


def _error_of(what: str, response: Mapping[str, Any]) -> LifecycleError:
    code, words = response["Error"].get("Code", ""), response["Error"].get("Message", "")
    message = f"SageMaker, {what}: {code}: {words}"
    status = int(response.get("OriginalStatusCode") or 0)
    if code == "ModelError" and 400 <= status < 500:
        return ContainerRefusedError(f"{what}: {status}, {response.get('OriginalMessage')}", status)
    if (
        code in _PASSING
        or code == "ModelError"
        or response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500
    ):
        return ServerUnavailableError(message)
    return (SageMakerAbsentError if words.startswith(_ABSENT) else SageMakerRefusedError)(message)
