"""The example's two trainers, as their pods run them: on the same flights, chosen by a parameter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from flight_world import World, folder_with, january, short_holdout
from frameworks_kit import failed
from training_world import train_here

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import as_served, feeds, open_session, predict
from ml_lifecycle.errors import TrainingError
from ml_lifecycle.evaluation.parity import parity_gates
from ml_lifecycle.metrics import Answers, measure_all
from ml_lifecycle.records import Training
from ml_lifecycle.training.reference import read_reference

AS_OF = january(20)


def chosen(text: str) -> Callable[[str], str]:
    """An edit of model.yaml: these parameters, and no others."""

    def edit(model: str) -> str:
        edited, count = re.subn(r"  parameters:\n(    .*\n)+", f"  parameters: {text}\n", model)
        assert count == 1
        return short_holdout(edited)

    return edit


def trained(weeks: World, path: Path, parameters: str) -> tuple[World, Training]:
    folder = folder_with(path / "flight_delay", {"model.yaml": chosen(parameters)})
    world = World(Lake(weeks.lake.url), folder)
    return world, train_here(world.lake, folder, path, world.training_set(AS_OF)).training


NETWORK = "{trainer: network, epochs: 3, batch_rows: 256}"


@pytest.fixture(scope="module")
def network(weeks: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Training]:
    return trained(weeks, tmp_path_factory.mktemp("network"), NETWORK)


@pytest.mark.full
def test_the_network_learns_and_is_served_as_it_answered(
    weeks: World, network: tuple[World, Training], tmp_path: Path
) -> None:
    world, training = network
    _, trees = trained(weeks, tmp_path / "trees", "{max_iter: 30, min_samples_leaf: 100}")
    # Ten days are few to learn from, and the holdout's days are later than usual: hard for both.
    assert training.metrics["log_loss"] < trees.metrics["log_loss"] + 0.03
    assert not training.not_reproducible_because
    assert "torch" in training.packages

    columns, lake = training.columns, world.lake
    training_set = world.training_set(AS_OF)
    session = open_session(lake.read_bytes(training.model_path, training.model_digest))
    known = pl.read_parquet(lake.full_path(training_set.train_path))
    answers = predict(session, feeds(as_served(known, columns)))
    learnt, _ = measure_all(Answers("binary", known["late"].to_numpy(), answers.outputs))
    assert learnt["roc_auc"] > 0.65

    reference = read_reference(lake, training.reference_path, columns, "binary")
    holdout = as_served(pl.read_parquet(lake.full_path(training_set.holdout_path)), columns)
    asked = pl.concat([holdout, reference.probes])
    limits = world.folder.spec.evaluation
    results = parity_gates(reference, predict(session, feeds(asked)), limits, "binary", 1.0, lambda: [asked])
    assert failed(results) == []


@pytest.mark.full
def test_the_network_depends_on_data_and_seed_alone(network: tuple[World, Training], tmp_path: Path) -> None:
    world, first = network
    world.lake.delete(f"{first.path}/manifest.json")
    again = train_here(world.lake, world.folder, tmp_path / "again", world.training_set(AS_OF)).training
    assert again.model_digest == first.model_digest


@pytest.mark.full
def test_other_settings_make_another_network(
    weeks: World, network: tuple[World, Training], tmp_path: Path
) -> None:
    _, first = network
    _, other = trained(weeks, tmp_path / "other", NETWORK.replace("epochs: 3", "epochs: 2"))
    assert other.model_digest != first.model_digest


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{trainer: forest}", "trainer is 'forest': there are trees and network"),
        ("{trainer: network, epoch: 3}", "unexpected keyword argument 'epoch'"),
    ],
)
def test_a_misspelt_choice_is_named(weeks: World, tmp_path: Path, parameters: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(weeks, tmp_path, parameters)
