"""The protobuf messages of the Open Inference Protocol V2, with the numbers that its clients speak.

Built from the tables below when the module is imported: no generated code, which would tie the server to the
protobuf release that generated it. Names and numbers are the protocol's (inference.GRPCInferenceService).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Field: (number, type); "[]" repeats it, "{}" maps names to it.
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, "string"),
        "version": (2, "string"),
        "extensions": (3, "string[]"),
    },
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "TensorMetadata": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64[]"),
        "parameters": (4, "InferParameter{}"),  # not the protocol's own; MLServer has it, by this number
    },
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string[]"),
        "platform": (3, "string"),
        "inputs": (4, "TensorMetadata[]"),
        "outputs": (5, "TensorMetadata[]"),
    },
    "InferParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "double_param": (4, "double"),
        "uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "bool[]"),
        "int_contents": (2, "int32[]"),
        "int64_contents": (3, "int64[]"),
        "uint_contents": (4, "uint32[]"),
        "uint64_contents": (5, "uint64[]"),
        "fp32_contents": (6, "float[]"),
        "fp64_contents": (7, "double[]"),
        "bytes_contents": (8, "bytes[]"),
    },
    "InferInputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64[]"),
        "parameters": (4, "InferParameter{}"),
        "contents": (5, "InferTensorContents"),
    },
    "InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "InferParameter{}")},
    "InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64[]"),
        "parameters": (4, "InferParameter{}"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "InferParameter{}"),
        "inputs": (5, "InferInputTensor[]"),
        "outputs": (6, "InferRequestedOutputTensor[]"),
        "raw_input_contents": (7, "bytes[]"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "InferParameter{}"),
        "outputs": (5, "InferOutputTensor[]"),
        "raw_output_contents": (6, "bytes[]"),
    },
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "ModelIndex": {
        "name": (1, "string"),
        "version": (2, "string"),
        "state": (3, "string"),
        "reason": (4, "string"),
    },
    "RepositoryIndexResponse": {"models": (1, "ModelIndex[]")},
    # Their parameters are left out: what is not known is passed over.
    "RepositoryModelLoadRequest": {"repository_name": (1, "string"), "model_name": (2, "string")},
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {"repository_name": (1, "string"), "model_name": (2, "string")},
    "RepositoryModelUnloadResponse": {},
}
# Of these messages a value has one field only.
_CHOICES = {"InferParameter": "parameter_choice"}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    base, ending = (kind[:-2], kind[-2:]) if kind[-2:] in ("[]", "{}") else (kind, "")
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if ending else _Field.LABEL_OPTIONAL
    if ending == "{}":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, base)
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
    elif base in _SCALARS:
        field.type = _SCALARS[base]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{base}"


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="ml_lifecycle/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
        if name in _CHOICES:
            message.oneof_decl.add(name=_CHOICES[name])
            for one in message.field:
                one.oneof_index = 0
    # A pool of its own: a client in this process may have brought the same names.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _MESSAGES
    }


MESSAGES: Mapping[str, Any] = _build()
"""Message classes by name."""
