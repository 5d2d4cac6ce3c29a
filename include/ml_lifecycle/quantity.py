"""Kubernetes resource quantities (``500m``, ``2Gi``, ``1e3``) and amounts of resources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from math import ceil

from ml_lifecycle.shown import shown

CPU = "cpu"
MEMORY = "memory"
GPU = "nvidia.com/gpu"

# The longest grace period, deadline or timeout: 68 years, Kubernetes' own limit.
MAX_SECONDS = 2**31 - 1

# Whole numbers per resource name: thousandths of a core for CPU, bytes for memory, a count for the rest.
Amounts = Mapping[str, int]

_QUANTITY = re.compile(
    r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<suffix>m|[kKMGTPE]i?|[eE][+-]?\d{1,2})?",
)
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001")}
_SUFFIXES |= {suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", 1)}
_SUFFIXES |= {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)}


def parse_quantity(value: object) -> Decimal:
    """The number that a quantity stands for, e.g. 0.5 for ``"500m"``.

    :raises ValueError: it is no quantity. Retry: no.
    """
    found = _QUANTITY.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    suffix = (found["suffix"] or "") if found else ""
    exponent = suffix[:1] in ("e", "E") and len(suffix) > 1
    if found is None or isinstance(value, bool) or not (exponent or suffix in _SUFFIXES):
        raise ValueError(f"{shown(value)} is no quantity; expected something like 500m, 2, 512Mi or 1.5Gi")
    if exponent:
        return Decimal(found["number"] + suffix)
    return Decimal(found["number"]) * _SUFFIXES[suffix]


def parse_amount(resource: str, value: object) -> int:
    """A quantity in the unit of :data:`Amounts`, rounded up as Kubernetes does.

    :raises ValueError: it is no quantity, or a part of something that comes whole. Retry: no.
    """
    number = parse_quantity(value)
    if resource == CPU:
        number *= 1000
    elif resource != MEMORY and number != int(number):
        raise ValueError(f"{shown(value)} must be a whole number")
    return ceil(number)


def parse_grace(value: object) -> int:
    """Seconds between SIGTERM and SIGKILL, whole as Kubernetes has them.

    :raises ValueError: it is none. Retry: no.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{shown(value)} is no grace period; expected whole seconds such as 30")
    return value


def insufficient(wanted: Amounts, free: Amounts) -> list[str]:
    """The resources that ``free`` has too little of, sorted; asking for none of something always fits."""
    return sorted(name for name, amount in wanted.items() if amount > 0 and amount > free.get(name, 0))


def subtract(free: Amounts, taken: Amounts) -> dict[str, int]:
    """``free`` less ``taken``; may become negative, which means promised to somebody else."""
    return {name: free.get(name, 0) - taken.get(name, 0) for name in free.keys() | taken.keys()}
