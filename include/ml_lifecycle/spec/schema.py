"""JSON Schemas of the spec files, for editors."""

from __future__ import annotations

from typing import Any, Literal

from ml_lifecycle.spec.contract import ContractFile
from ml_lifecycle.spec.model import ModelSpec

SchemaName = Literal["model", "contract"]


def json_schema(name: SchemaName) -> dict[str, Any]:
    """JSON Schema 2020-12 of ``model.yaml`` or ``contract.yaml``."""
    body = (ModelSpec if name == "model" else ContractFile).model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:airflow-ml-lifecycle:{name}:1",
        **body,
        "title": f"{name}.yaml",
    }
