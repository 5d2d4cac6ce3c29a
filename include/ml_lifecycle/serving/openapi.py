"""The server's own OpenAPI document: what can be asked, and every status it may be answered with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_lifecycle.serving.types import DATATYPES

_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape", "data"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 200},
        "datatype": {"enum": sorted(name for names in DATATYPES.values() for name in names)},
        "shape": {
            "description": "[rows] or [rows, columns]",
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"type": "integer", "minimum": 0},
        },
        "data": {"description": "flat and row-major, or a list of rows", "type": "array"},
    },
}
_OBJECT = {"type": "object"}
_INPUT = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": [names[0] for names in DATATYPES.values()]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {
            "description": "what the model's contract says of each value, where it was proved to hold",
            "type": "object",
            "required": ["contract", "type", "nullable"],
            "properties": {
                "contract": {"description": "contract.field", "type": "string"},
                "type": {"enum": ["string", "integer", "float", "boolean"]},
                "nullable": {"type": "boolean"},
                "min": {"type": "number"},
                "max": {"type": "number"},
                "allowed_values": {"type": "array", "minItems": 1},
                "pattern": {"description": "of the whole text, in Python's re", "type": "string"},
            },
        },
    },
}
_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "minLength": 1}},
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {
                "description": "becomes the prediction's id in the log",
                "type": ["string", "null"],
                "minLength": 1,
                "maxLength": 200,
            },
            "parameters": {
                "description": "event_time: a time or one a row; entities: key → one value a row",
                **_OBJECT,
            },
            "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}},
                },
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "id", "parameters", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "required": ["route_revision", "model_digest"],
                "properties": {
                    "route_revision": {"type": "integer", "minimum": 1},
                    "model_digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                },
            },
            "outputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        },
    },
    "ModelMetadata": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs", "parameters"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"const": "onnxruntime_onnx"},
            "inputs": {"type": "array", "items": _INPUT},
            "outputs": {"type": "array", "items": _OBJECT},
            "parameters": _OBJECT,
        },
    },
    "ModelReady": {
        "type": "object",
        "required": ["name", "version", "ready"],
        "properties": {"ready": {"const": True}},
    },
    "ServerMetadata": {
        "type": "object",
        "required": ["name", "version", "extensions", "environment", "models", "lake_error"],
        "properties": {
            "models": {"type": "array", "items": {"type": "string"}},
            "lake_error": {
                "description": "why nothing is served, or nothing new: the lake is empty, or away",
                "type": ["string", "null"],
            },
        },
    },
    "RepositoryIndex": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "version", "state", "reason"],
            "properties": {"state": {"enum": ["READY", "UNAVAILABLE"]}},
        },
    },
    "Nothing": {"type": "object", "maxProperties": 0},
    "Live": {"type": "object", "required": ["live"], "properties": {"live": {"const": True}}},
    "Ready": {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}},
}
_REFUSED = {
    "401": "no token",
    "404": "no such model or version",
    "429": "the client has used up its allowance",
    "503": "not loaded yet",
}
_INFER_REFUSED = {
    **_REFUSED,
    "400": "the request does not fit the model, or breaks a rule of its contract, where that is refused",
    "404": "no such model or version, or entity keys that nothing is known of, where these are refused",
    "413": "too many bytes or rows",
}


def document(version: str, models: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server that serves ``models`` now."""
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("Server metadata", "ServerMetadata", {"401": _REFUSED["401"]})},
        "/v2/health/live": {"get": {**_operation("The process answers", "Live", {}), "security": []}},
        "/v2/health/ready": {
            "get": {
                **_operation("Requests may be sent", "Ready", {}),
                "security": [],
            }
        },
    }
    paths["/v2/health/ready"]["get"]["responses"]["503"] = _answer("not yet", "Ready")
    model = {"name": "model", "in": "path", "required": True, "schema": {"enum": sorted(models)}}
    which = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for prefix, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, which]),
    ):
        if not models:
            continue  # nothing can be asked about what is not there
        infer = _operation("Score rows: columns, or entity keys", "InferResponse", _INFER_REFUSED)
        infer["requestBody"] = {"required": True, "content": _content("InferRequest")}
        paths[prefix] = {
            "parameters": parameters,
            "get": _operation("Model metadata", "ModelMetadata", _REFUSED),
        }
        paths[f"{prefix}/ready"] = {
            "parameters": parameters,
            "get": _operation("The model answers", "ModelReady", _REFUSED),
        }
        paths[f"{prefix}/infer"] = {"parameters": parameters, "post": infer}
    paths |= _repository(model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ml_lifecycle model server, Open Inference Protocol V2", "version": version},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _repository(model: dict[str, Any]) -> dict[str, Any]:
    """Which models are in memory, and how that is changed."""
    index = _operation("Every model and version with its state", "RepositoryIndex", {"401": _REFUSED["401"]})
    paths: dict[str, Any] = {"/v2/repository/index": {"post": index}}
    refused = {
        "400": "the body is no JSON object",
        "403": "the client is none with repository: true",
        **_REFUSED,
    }
    for call, summary in (("load", "Serve what is published now"), ("unload", "Take it out of memory")):
        if model["schema"]["enum"]:
            paths[f"/v2/repository/models/{{model}}/{call}"] = {
                "parameters": [model],
                "post": _operation(summary, "Nothing", refused),
            }
    return paths


def _operation(summary: str, schema: str, refused: dict[str, str]) -> dict[str, Any]:
    responses = {"200": _answer("fine", schema)}
    responses |= {status: _answer(why, "Error") for status, why in refused.items()}
    return {"summary": summary, "responses": responses}


def _answer(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": _content(schema)}


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
