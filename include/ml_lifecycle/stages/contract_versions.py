"""Contracts as they were when data last met them, and what a changed one must say of itself.

A contract breaks if data that met the last one may be halted by it, or if a field that others may read is
gone (:mod:`ml_lifecycle.spec.contract_diff`). Its major version must then be larger than that of the last
one. What breaks nothing may change under any version.

Each source's contract is compared with the one that the last validated snapshot before the run met there,
whatever its name. That one lies in ``contracts/<model>/<digest>.json`` before the snapshot counts as
validated, so whoever is killed between writes it again. Where none is on record there is nothing to compare
with.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.errors import ContractBreaksError
from ml_lifecycle.records import digest_of
from ml_lifecycle.spec.contract import Contract, ContractFile
from ml_lifecycle.spec.contract_diff import breaking_changes
from ml_lifecycle.spec.loader import Parsed


def contract_digest(contract: Contract | None) -> str:
    """Digest of what a contract means, whatever its comments and formatting."""
    return digest_of(contract.model_dump(mode="json") if contract is not None else None)


def keep_contracts(lake: Lake, model: str, contracts: Mapping[str, Contract | None]) -> None:
    """Write the sources' contracts by their digests."""
    for contract in contracts.values():
        if contract is not None and not lake.exists(path := _path(model, contract_digest(contract))):
            lake.write_json(path, contract.model_dump(mode="json"))


def refuse_breaking(
    lake: Lake,
    model: str,
    met: Mapping[str, str],
    contracts: Mapping[str, Contract | None],
    written: Parsed[ContractFile] | None,
) -> None:
    """Stop at contracts that break what was, and whose version does not say so.

    :param met: digest of the contract that the last validated snapshot met, by source
    :param contracts: those of now, by source
    :param written: the file they stand in, so that the error can show the lines
    :raises ContractBreaksError: naming each change. Retry: no.
    """
    found: dict[str, None] = {}
    for source, contract in contracts.items():
        if contract is None or met.get(source) in (None, contract_digest(contract)):
            continue
        last = _last(lake, model, met[source])
        if last is None or _major(contract.version) > _major(last.version):
            continue
        if changes := breaking_changes(last, contract, written):
            right = f"{_major(last.version) + 1}.0"
            version = (
                f"is still version {contract.version}"
                if contract.version == last.version
                else f"is version {contract.version}, after {last.version}"
            )
            head = f"contract {contract.name} breaks what data met before, and {version}:"
            advice = f"raise version of {contract.name} to {right}, or go back to what {last.version} said"
            found["\n\n".join([head, *changes, advice])] = None
    if found:
        raise ContractBreaksError("\n\n".join(found))


def _last(lake: Lake, model: str, digest: str) -> Contract | None:
    """None where it is not on record, or was written for rules that there are no more."""
    path = _path(model, digest)
    if not lake.exists(path):
        return None
    try:
        return Contract.model_validate(lake.read_json(path))
    except ValidationError:
        return None


def _path(model: str, digest: str) -> str:
    return f"contracts/{safe_name(model)}/{digest}.json"


def _major(version: str) -> int:
    return int(version.partition(".")[0])
