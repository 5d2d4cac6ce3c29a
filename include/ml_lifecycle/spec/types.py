"""Small types shared by the specs.

Each says in its JSON Schema what would be right (``patternErrorMessage``, which editors show as well): the
loader's errors and an editor's squiggles read the same.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ml_lifecycle.spec.problems import suggest

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST = 50 * 365 * 86_400  # from any moment, back or forth, it leads to one; Kubernetes takes it as well
_PARAMETER = re.compile(r"\s*:param (\w+): (.*?)(?=\s*:param |\Z)", re.DOTALL)


class FieldError(ValueError):
    """A rule between several fields is broken; ``path`` leads to the one to point at. Retry: no."""

    def __init__(self, field: str, message: str, *below: str | int) -> None:
        self.path = (field, *below)
        super().__init__(f"{'.'.join(map(str, self.path))}: {message}")
        self.message = message


class Strict(BaseModel):
    """Base of all spec objects: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema with each field's ``:param`` line as its description and defaults as YAML has them."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        text = " ".join((cls.__doc__ or "").split())
        schema["description"] = text.partition(" :param ")[0].replace("``", "'")
        described = dict(_PARAMETER.findall(text))
        for name, field in cls.model_fields.items():
            if name in described:
                schema["properties"][name]["description"] = described[name].replace("``", "'")
            if isinstance(field.default, timedelta):
                schema["properties"][name]["default"] = format_duration(field.default)
            elif isinstance(field.default, BaseModel):
                schema["properties"][name]["default"] = field.default.model_dump(mode="json")
        return schema


def parse_duration(value: Any) -> Any:
    """``"24h"`` → timedelta. Units: s, m, h, d, w."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,9})([smhdw])", value)):
        seconds = int(match[1]) * _SECONDS[match[2]]
        if seconds > _LONGEST:
            raise ValueError(f"{value!r} is longer than 50 years")
        return timedelta(seconds=seconds)
    raise ValueError(f"{value!r} is not a duration: write a whole number and a unit, such as 30m, 24h or 7d")


def format_duration(value: timedelta) -> str:
    """The shortest text :func:`parse_duration` reads back."""
    seconds = int(value.total_seconds())
    for unit, size in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _not_zero(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than zero")
    return value


def _text(pattern: str, rule: str) -> Any:
    return Field(pattern=pattern, json_schema_extra={"patternErrorMessage": rule})


_DURATION_SCHEMA = WithJsonSchema(
    {
        "type": "string",
        "pattern": r"^[0-9]{1,9}[smhdw]$",
        "patternErrorMessage": "must be a whole number and a unit, such as 30m, 24h or 7d",
        "examples": ["30m", "24h", "7d"],
    }
)
_AS_TEXT = PlainSerializer(format_duration, return_type=str)

Duration = Annotated[timedelta, BeforeValidator(parse_duration), _AS_TEXT, _DURATION_SCHEMA]

# A window, a deadline, a timeout: none makes sense with no length.
PositiveDuration = Annotated[
    timedelta, BeforeValidator(parse_duration), AfterValidator(_not_zero), _AS_TEXT, _DURATION_SCHEMA
]


def _sane(value: datetime) -> datetime:
    if not 1970 <= value.year < 2200:
        raise ValueError("must lie between 1970 and 2200")
    return value


Moment = Annotated[AwareDatetime, AfterValidator(_sane)]

# Versions are text: 2.10 and 2.1 differ. The loader hands an unquoted one over as it is written.
VersionText = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$"),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "pattern": r"^[0-9]+(\.[0-9]+)*$",
            "patternErrorMessage": "must be numbers and dots, such as 2.1",
        }
    ),
]

# Becomes a DAG id, a path segment and an endpoint's name.
Name = Annotated[
    str,
    _text(
        r"^[a-z][a-z0-9_]{0,62}$",
        "must be lower-case letters, digits and '_', a letter first, 63 characters at most",
    ),
]

# An Airflow connection id.
ConnectionId = Annotated[
    str,
    _text(r"^[A-Za-z0-9_.-]{1,200}$", "must be an Airflow connection id: letters, digits, '_', '.', '-'"),
]

# A column, a user, a path: anything but nothing, and nothing that could end a line.
Text = Annotated[
    str, Field(min_length=1), _text(r"^[^\x00-\x1f\x7f]*$", "must be text without control characters")
]

# The same over several lines.
Lines = Annotated[
    str,
    Field(min_length=1),
    _text(r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$", "must be text without control characters but line ends"),
]

# An Airflow tag.
Tag = Annotated[str, _text(r"^[^\x00-\x1f\x7f]{1,100}$", "must be text of 1 to 100 characters")]

# What a pod runs in. KubernetesPodOperator expands templates in it, and a spec is data.
Image = Annotated[
    str,
    _text(
        r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,499}$",
        "must be an image reference, such as registry/team/training:1.2",
    ),
]

Cron = Annotated[
    str,
    _text(r"^([A-Za-z0-9*/,#?-]+ ){4}[A-Za-z0-9*/,#?-]+$", 'must be five cron fields, such as "0 3 * * *"'),
]


def _known_zone(value: str) -> str:
    if value not in (zones := available_timezones()):
        near = suggest(value, sorted(zones))[:-1]
        raise ValueError("; ".join(["must be an IANA time zone, such as Europe/Berlin", *near]))
    return value


TimeZone = Annotated[str, AfterValidator(_known_zone), Field(examples=["UTC", "America/New_York"])]

# Kubernetes quantities.
Cpu = Annotated[str, _text(r"^([0-9]+m|[0-9]+(\.[0-9]+)?)$", 'must be a CPU quantity, such as "2" or 500m')]
Memory = Annotated[
    str, _text(r"^[0-9]+(\.[0-9]+)?([KMGT]i|[kMGT])?$", "must be a memory quantity, such as 512Mi or 2Gi")
]

# Amazon's names of a role and of a kind of machine.
RoleArn = Annotated[
    str,
    _text(
        r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}$",
        "must be the ARN of a role, such as arn:aws:iam::123456789012:role/models",
    ),
]
InstanceType = Annotated[
    str, _text(r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$", "must be a SageMaker instance type, such as ml.m5.large")
]

# A label's key, a resource's or a priority class's name, and a label's value, as Kubernetes has them.
KubernetesName = Annotated[
    str,
    _text(
        r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?$",
        "must be a Kubernetes name, such as nvidia.com/gpu or spot",
    ),
]
LabelValue = Annotated[
    str,
    _text(
        r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$",
        "must be a label's value: letters, digits, '.', '_' or '-', 63 at most",
    ),
]
