"""PyTorch's modules as ONNX: ``torch.onnx.export``'s graph, set into the one that skl2onnx makes."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from ml_lifecycle.adapters import onnx_converters
from ml_lifecycle.errors import ConversionError

_ESTIMATORS = "ml_lifecycle.training.torch_estimator"
_LONGEST_REASON = 300


def register(opset: int) -> None:
    """Teach skl2onnx the estimators around a module, if this process has imported them.

    :param opset: of the operators that a module may become
    """
    if (estimators := sys.modules.get(_ESTIMATORS)) is None:
        return

    def convert(scope: Any, operator: Any, container: Any) -> None:
        _convert(scope, operator, container, opset)

    onnx_converters.register(estimators.TorchClassifier, convert, classifier=True)
    onnx_converters.register(estimators.TorchRegressor, convert, classifier=False)


def _convert(scope: Any, operator: Any, container: Any, opset: int) -> None:
    from onnx import TensorProto, compose

    estimator, (rows,) = operator.raw_operator, operator.inputs
    prefix = f"{scope.get_unique_variable_name('network')}/"
    graph = compose.add_prefix(_exported(estimator, int(rows.type.shape[1]), opset), prefix).graph
    container.initializers.extend(graph.initializer)
    container.nodes.extend(graph.node)
    container.node_domain_version_pair_sets.add(("", opset))

    name = scope.get_unique_operator_name
    taken, answers = graph.input[0].name, graph.output[0].name
    container.add_node("Cast", [rows.full_name], [taken], name=name("Cast"), to=TensorProto.FLOAT)
    given = operator.outputs[-1].full_name
    container.add_node("Identity", [answers], [given], name=name("Identity"))
    if len(operator.outputs) == 2:
        label = operator.outputs[0].full_name
        onnx_converters.add_most_probable_label(scope, container, estimator.classes_, given, label)


def _exported(estimator: Any, columns: int, opset: int) -> Any:
    """The module's graph, for any number of rows, without traces of where and of what source it was made.

    :raises ConversionError: the module cannot be asked, or exported. Retry: no.
    """
    import torch
    from onnx import inliner

    module, network, rows = type(estimator.module).__name__, estimator.network(), torch.zeros(3, columns)
    try:
        with torch.inference_mode():
            network(rows)
    except Exception as error:  # it is the user's module
        reason = f"{module} cannot answer rows of {columns} columns: {_first_words(error)}"
        raise ConversionError(reason) from error
    # It warns of torchvision, which is not there, and of PyTorch's own deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Left to torch.onnx.export, a module of one batch size only would become a model of just that.
            traced = torch.export.export(network, (rows,), dynamic_shapes=({0: torch.export.Dim("n")},))
            program = torch.onnx.export(
                traced, opset_version=opset, input_names=["rows"], output_names=["answers"], verbose=False
            )
    except Exception as error:  # the exporter raises whatever it meets in the user's module
        raise ConversionError(
            f"PyTorch cannot export {module}: {_first_words(error)}. What it does, and the shapes it makes, "
            "may not depend on values, nor on the number of rows"
        ) from error
    model = inliner.inline_local_functions(program.model_proto)
    if found := {entry.domain: entry.version for entry in model.opset_import if entry.version != opset}:
        raise ConversionError(f"{module} needs operators of other opsets: {found}")
    _forget_where(model.graph)
    return model


def _forget_where(graph: Any) -> None:
    """Drop source paths and stack traces: the same weights shall have the same bytes on every machine."""
    for part in (*graph.node, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs):
                _forget_where(branch)


def _first_words(error: BaseException) -> str:
    """What lies at the bottom of the exporter's error, without its pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_LONGEST_REASON]}".rstrip(".")
