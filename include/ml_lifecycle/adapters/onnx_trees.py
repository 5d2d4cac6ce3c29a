"""XGBoost's and LightGBM's estimators as ONNX: onnxmltools' converters, kept to what they convert right.

Tried case by case, those converters give other answers for several kinds of model, and say nothing. What
can be mended is mended here: XGBoost's feature names, parallel trees and early stopping, LightGBM's float64
thresholds, labels. What cannot is refused with its reason. Converters are registered with skl2onnx, and so
serve an estimator alone, at the end of a pipeline or within another estimator alike.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ml_lifecycle.adapters import onnx_converters
from ml_lifecycle.errors import ConversionError

# Everything else either has no converter or, like survival:cox and multiclassova, a wrong one.
XGBOOST_OBJECTIVES = {
    "classifier": ("binary:logistic", "binary:hinge", "reg:logistic", "multi:softprob", "multi:softmax"),
    "regressor": (
        "reg:squarederror",
        "reg:absoluteerror",
        "reg:pseudohubererror",
        "reg:quantileerror",
        "reg:squaredlogerror",
        "reg:gamma",
        "reg:tweedie",
        "count:poisson",
    ),
}
LIGHTGBM_OBJECTIVES = {
    "classifier": ("binary", "multiclass"),
    "regressor": ("regression", "regression_l1", "huber", "quantile", "poisson", "gamma", "tweedie"),
}
_ZERO_IS_MISSING = 1  # in bits 2 and 3 of LightGBM's decision_type


def register() -> None:
    """Teach skl2onnx the estimators of those of the two libraries that this process has imported."""
    if (xgboost := sys.modules.get("xgboost")) is not None:
        for name in ("XGBClassifier", "XGBRFClassifier", "XGBRegressor", "XGBRFRegressor"):
            _register(getattr(xgboost, name, None), "xgboost", _convert_xgboost)
    if (lightgbm := sys.modules.get("lightgbm")) is not None:
        for name in ("LGBMClassifier", "LGBMRegressor"):
            _register(getattr(lightgbm, name, None), "lightgbm", _convert_lightgbm)


def _register(estimator: type[Any] | None, extra: str, convert: Callable[..., None]) -> None:
    if estimator is None:  # half imported, or a namesake
        return
    name = estimator.__name__

    def refuse(scope: Any, operator: Any, container: Any) -> None:  # skl2onnx asks for these names
        raise ConversionError(
            f"{name} needs onnxmltools to become ONNX: "
            f"install airflow-ml-lifecycle[{extra}] in the pod's image"
        )

    # Without it only these cannot be converted: other estimators of the same process can.
    there = importlib.util.find_spec("onnxmltools") is not None
    onnx_converters.register(estimator, convert if there else refuse, _is_classifier(estimator))


def _is_classifier(estimator: type[Any]) -> bool:
    return estimator.__name__.endswith("Classifier")


def _convert_xgboost(scope: Any, operator: Any, container: Any) -> None:
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

    trees = _XgboostTrees(operator.raw_operator)
    _convert(convert_xgboost, trees, scope, operator, container)


class _XgboostTrees:
    """An XGBoost estimator, and its booster in one, as onnxmltools' converter reads them right.

    It takes a feature's name ``f1`` for its position, the number of rounds for that of trees, and the
    trees to come one a class in turns.
    """

    kwargs = None  # without the attribute onnxmltools would read __dict__ for parameters
    missing = math.nan

    def __init__(self, estimator: Any) -> None:
        classifier = _is_classifier(type(estimator))
        self.operator_name = "XGBClassifier" if classifier else "XGBRegressor"
        self.classes_ = estimator.classes_ if classifier else None
        self._booster = estimator.get_booster().copy()
        self._config = json.loads(self._booster.save_config())
        _check_xgboost(estimator, self._config["learner"], classifier)
        if (best := getattr(estimator, "best_iteration", None)) is not None:  # of early stopping
            self._booster = self._booster[: best + 1]
            self._config = json.loads(self._booster.save_config())
        self._booster.feature_names = None
        self._trees = self._in_turns()

    def _in_turns(self) -> list[str]:
        trees: list[str] = self._booster.get_dump(with_stats=True, dump_format="json")
        model = json.loads(bytes(self._booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
        of_class = np.asarray(model["tree_info"])
        classes = int(of_class.max(initial=0)) + 1
        if classes > 1:
            order = np.argsort(of_class, kind="stable").reshape(classes, -1).T.ravel()
            return [trees[tree] for tree in order]
        # Where the first tree is a leaf of 0, the converter takes a probability for its log-odds.
        trees.sort(key=_says_nothing)
        if not trees or _says_nothing(trees[0]):
            raise ConversionError("it has learnt nothing: it has no tree, or only trees that answer 0")
        return trees

    def get_booster(self) -> _XgboostTrees:
        return self

    def get_dump(self, **_: Any) -> list[str]:
        return self._trees

    def save_config(self) -> str:
        return json.dumps(self._config)

    def get_xgb_params(self) -> dict[str, Any]:
        objective = self._config["learner"]["objective"]["name"]
        if objective == "multi:softmax":  # the same trees; predict_proba answers the same probabilities
            objective = "multi:softprob"
        return {"objective": objective, "n_estimators": len(self._trees)}


def _says_nothing(tree: str) -> bool:
    return bool(json.loads(tree).get("leaf") == 0)


def _check_xgboost(estimator: Any, learner: dict[str, Any], classifier: bool) -> None:
    """:raises ConversionError: converted, it would give other answers. Retry: no."""
    booster = learner["gradient_booster"]["name"]
    if booster != "gbtree":
        raise ConversionError(
            f"onnxmltools converts booster='gbtree' only, this one is {booster!r}: train with gbtree"
        )
    if not (isinstance(estimator.missing, float) and math.isnan(estimator.missing)):
        raise ConversionError(
            f"missing={estimator.missing!r} is a value like any other to ONNX: "
            "leave the argument out, missing values are served as NaN"
        )
    if estimator.get_params().get("multi_strategy") == "multi_output_tree":
        raise ConversionError("multi_strategy='multi_output_tree' has no form in ONNX: leave it out")
    name = "a function" if callable(estimator.objective) else learner["objective"]["name"]
    _check_objective(name, XGBOOST_OBJECTIVES, classifier)


def _check_objective(name: str, allowed: dict[str, tuple[str, ...]], classifier: bool) -> None:
    known = allowed["classifier" if classifier else "regressor"]
    if name not in known:
        raise ConversionError(
            f"its objective is {name}, whose answers onnxmltools does not make: use one of {', '.join(known)}"
        )


def _convert_lightgbm(scope: Any, operator: Any, container: Any) -> None:
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

    estimator = operator.raw_operator
    _check_lightgbm(estimator)
    _convert(convert_lightgbm, estimator, scope, operator, _RoundingDown(container))


def _check_lightgbm(estimator: Any) -> None:
    """:raises ConversionError: converted, it would give other answers. Retry: no."""
    text = estimator.booster_.model_to_string()
    lines = text.partition("\nparameters:")[0].splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    # "binary sigmoid:1", "regression sqrt", "quantile"; none if it is a function
    name, *arguments = values["objective"].split(" ") if "objective" in values else ["a function"]
    _check_objective(name, LIGHTGBM_OBJECTIVES, _is_classifier(type(estimator)))
    if "sqrt" in arguments:
        raise ConversionError("reg_sqrt=True: onnxmltools leaves the square out; train on the labels as is")
    if any(part.startswith("sigmoid:") and float(part[8:]) != 1 for part in arguments):
        raise ConversionError("onnxmltools takes sigmoid for 1: leave the argument out")
    if "average_output" in lines:
        raise ConversionError(
            "boosting_type='rf': onnxmltools takes the average wrong; scikit-learn's random forests convert"
        )
    if any(line == "is_linear=1" for line in lines):
        raise ConversionError("linear_tree=True: onnxmltools leaves the leaves' slopes out; train without it")
    kinds = (int(kind) for line in lines if line.startswith("decision_type=") for kind in line[14:].split())
    if any((kind >> 2) & 3 == _ZERO_IS_MISSING for kind in kinds):
        raise ConversionError(
            "zero_as_missing=True: ONNX knows NaN only as missing; leave the argument out, "
            "missing values are served as NaN"
        )
    if estimator.get_params().get("pred_early_stop"):
        raise ConversionError(
            "pred_early_stop=True answers with some of the trees, ONNX with all: leave it out"
        )


class _RoundingDown:
    """skl2onnx's container, which writes a tree's float64 thresholds as float32 without moving a row.

    Inputs are float32, thresholds often halfway between two neighbours of them. Rounded to the nearest, a
    threshold can become the upper one, and ``upper <= threshold`` true; rounded down it says what it said.
    """

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        if "nodes_values" in attributes:
            exact = np.asarray(attributes["nodes_values"], dtype=np.float64)
            with np.errstate(over="ignore"):
                values = exact.astype(np.float32)
            down = np.where(values > exact, np.nextafter(values, np.float32(-np.inf)), values)
            attributes["nodes_values"] = [float(value) for value in down]
        self._container.add_node(op_type, inputs, outputs, **attributes)


def _convert(converter: Callable[..., None], model: Any, scope: Any, operator: Any, container: Any) -> None:
    """Call onnxmltools' converter; a classifier's label is then the most probable class.

    Left to ONNX Runtime, whose binary tree ensembles decide at another score if no leaf is negative, it may
    be the other one.
    """
    *label, answers = [output.full_name for output in operator.outputs]
    if label:
        _check_raw_scores(operator.raw_operator, container)
    outputs = [*(scope.get_unique_variable_name("undecided") for _ in label), answers]
    asked = SimpleNamespace(
        raw_operator=model,
        full_name=operator.full_name,
        inputs=operator.inputs,
        input_full_names=operator.input_full_names,
        outputs=[SimpleNamespace(full_name=name) for name in outputs],
        output_full_names=outputs,
    )
    converter(scope, asked, container)
    if label:
        classes = operator.raw_operator.classes_
        onnx_converters.add_most_probable_label(scope, container, classes, answers, label[0])


def _check_raw_scores(estimator: Any, container: Any) -> None:
    """:raises ConversionError: it is to answer other scores than its probabilities. Retry: no."""
    wanted = container.get_options(estimator, {"raw_scores": False})["raw_scores"]
    if wanted and hasattr(estimator, "decision_function"):
        raise ConversionError(
            "CalibratedClassifierCV calibrates its decision_function, which onnxmltools does not make: "
            "calibrate a classifier without one, as XGBClassifier, or do without"
        )
