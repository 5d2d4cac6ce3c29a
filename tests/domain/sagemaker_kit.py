"""moto's SageMaker, with what it lacks of the real one.

That is UpdateEndpoint and shadow variants; names that may not be made twice; changes that take time, or fail.

It runs no containers: what they answer comes from whoever is asked instead (:meth:`Account.answer_by`).
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import boto3
from botocore.awsrequest import AWSResponse
from moto import mock_aws
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import SageMakerModelBackend
from moto.sagemaker.responses import SageMakerResponse

from ml_lifecycle.adapters.sagemaker import SageMakerApi

REGION = "eu-central-1"

# Of a request: variant it names, custom attributes, body. Back: status and body.
Answer = Callable[[str | None, str | None, bytes], tuple[int, bytes]]


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Account:
    """An account of its own.

    :param looks: how often a change is looked at before it is done
    :param failing: why an update, or a creation, does not succeed; none does while it is set
    """

    looks: int = 1
    failing: str | None = None
    control: Any = None
    runtime: Any = None
    calls: Counter[str] = field(default_factory=Counter)
    _changes: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    _shadows: dict[str, Any] = field(default_factory=dict)

    @property
    def api(self) -> SageMakerApi:
        return SageMakerApi(self.control, self.runtime)

    def state(self) -> dict[str, Any]:
        """All that there is in the account."""
        endpoints, configs, models = {}, {}, {}
        for one in self.control.list_endpoints()["Endpoints"]:
            found = self.control.describe_endpoint(EndpointName=one["EndpointName"])
            endpoints[one["EndpointName"]] = (found["EndpointConfigName"], found["EndpointStatus"])
        for one in self.control.list_endpoint_configs()["EndpointConfigs"]:
            name = one["EndpointConfigName"]
            found = self.control.describe_endpoint_config(EndpointConfigName=name)
            configs[name] = found["ProductionVariants"], self._shadows.get(name)
        for one in self.control.list_models()["Models"]:
            found = self.control.describe_model(ModelName=one["ModelName"])
            models[one["ModelName"]] = found["PrimaryContainer"], found["ExecutionRoleArn"]
        return {"endpoints": endpoints, "configs": configs, "models": models}

    def kill_at(self, number: int, when: str) -> None:
        """Have the process end before, or after, the call of this number has reached SageMaker."""
        made = iter(range(1, 10_000))

        def count(**_: Any) -> None:
            if next(made) == number:
                raise Killed

        self.control.meta.events.register(f"{when}-call.sagemaker", count, unique_id="kill")

    def go_on(self) -> None:
        """Kill no more."""
        for when in ("before", "after"):
            self.control.meta.events.unregister(f"{when}-call.sagemaker", unique_id="kill")

    def answer_by(self, answer: Answer) -> None:
        """Have containers' answers come from here, in the form that SageMaker gives them."""

        def send(request: Any, **_: Any) -> AWSResponse:
            headers = {name.lower(): _text(value) for name, value in request.headers.items()}
            body = request.body.read() if hasattr(request.body, "read") else request.body
            status, content = answer(
                headers.get("x-amzn-sagemaker-target-variant"),
                headers.get("x-amzn-sagemaker-custom-attributes"),
                body,
            )
            if status == 200:
                return AWSResponse(request.url, 200, {}, _Raw(content))
            error = {"Message": "Received an error", "OriginalStatusCode": status}
            error["OriginalMessage"] = content.decode()
            return AWSResponse(
                request.url, 424, {"x-amzn-errortype": "ModelError"}, _Raw(json.dumps(error).encode())
            )

        self.runtime.meta.events.register_first("before-send.sagemaker-runtime.InvokeEndpoint", send)

    # What moto lacks.

    def update(self, backend: Any, name: str, config: str) -> Any:
        endpoint = backend.endpoints[name]
        if endpoint.endpoint_status != "InService":
            raise ValidationError(f"Cannot update in-progress endpoint {name!r}.")
        backend.describe_endpoint_config(config)
        endpoint.endpoint_status = "Updating"
        self._changes[name] = (self.looks, endpoint.endpoint_config_name, config)
        return endpoint

    def created(self, backend: Any, name: str, config: str) -> None:
        backend.endpoints[name].endpoint_status = "Creating"
        self._changes[name] = (self.looks, "", config)

    def looked_at(self, backend: Any, name: str) -> None:
        """Each look brings the change nearer to its end."""
        if name not in self._changes or name not in backend.endpoints:
            return
        left, before, config = self._changes.pop(name)
        if left:
            self._changes[name] = (left - 1, before, config)
            return
        endpoint = backend.endpoints[name]
        endpoint.failure_reason = self.failing
        if self.failing is None:
            endpoint.endpoint_config_name, endpoint.endpoint_status = config, "InService"
        else:
            endpoint.endpoint_status = "InService" if before else "Failed"


class _Raw(io.BytesIO):
    """A body as urllib3 has it."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@cache
def _session() -> boto3.Session:
    """Kept: it reads what there is of AWS's services first, which takes a while."""
    return boto3.Session("test", "test", region_name=REGION)


@contextmanager
def aws_account() -> Iterator[Account]:
    """An empty account; of the process's own variables none leads to another."""
    with mock_aws(), _completed() as account:
        account.control = _session().client("sagemaker")
        account.runtime = _session().client("sagemaker-runtime")
        account.control.meta.events.register(
            "before-call.sagemaker", lambda model, **_: account.calls.update([model.name])
        )
        yield account


@contextmanager
def _completed() -> Iterator[Account]:
    account, backend_class = Account(), SageMakerModelBackend
    make_model, make_config = backend_class.create_model, backend_class.create_endpoint_config
    make_endpoint, describe = backend_class.create_endpoint, backend_class.describe_endpoint

    def refuse(kind: str, name: str, known: Mapping[str, Any]) -> None:
        if name in known:
            raise ValidationError(f'Cannot create already existing {kind} "{name}".')

    def create_model(self: Any, model_name: str, **rest: Any) -> Any:
        refuse("model", model_name, self._models)
        return make_model(self, model_name, **rest)

    def create_config(self: Any, endpoint_config_name: str, **rest: Any) -> Any:
        refuse("endpoint configuration", endpoint_config_name, self.endpoint_configs)
        return make_config(self, endpoint_config_name, **rest)

    def create_endpoint(self: Any, endpoint_name: str, endpoint_config_name: str, tags: Any) -> Any:
        refuse("endpoint", endpoint_name, self.endpoints)
        made = make_endpoint(self, endpoint_name, endpoint_config_name, tags)
        account.created(self, endpoint_name, endpoint_config_name)
        return made

    def describe_endpoint(self: Any, endpoint_name: str) -> Any:
        account.looked_at(self, endpoint_name)
        return describe(self, endpoint_name)

    def take_shadows(self: Any) -> Any:
        shadows = self._get_param("ShadowProductionVariants")
        answer = answer_config(self)
        account._shadows[self._get_param("EndpointConfigName")] = shadows
        return answer

    def update_endpoint(self: Any) -> Any:
        from moto.core.responses import ActionResult

        name, config = self._get_param("EndpointName"), self._get_param("EndpointConfigName")
        return ActionResult({"EndpointArn": account.update(self.sagemaker_backend, name, config).arn})

    answer_config = SageMakerResponse.create_endpoint_config
    changed = {
        "create_model": create_model,
        "create_endpoint_config": create_config,
        "create_endpoint": create_endpoint,
        "describe_endpoint": describe_endpoint,
    }
    with (
        patch.multiple(backend_class, **changed),
        patch.multiple(
            SageMakerResponse,
            create_endpoint_config=take_shadows,
            update_endpoint=update_endpoint,
            create=True,
        ),
    ):
        yield account
