"""Scores files on Spark until it is killed; its arguments are lake, folder, training and the files."""

from __future__ import annotations

import sys

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import Training, from_json
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.score import score
from ml_lifecycle.stages.score_partitions import FilePartition

if __name__ == "__main__":
    lake = Lake(sys.argv[1])
    training = from_json(Training, lake.read_json(sys.argv[3]))
    spec = load_folder(sys.argv[2]).spec.model_copy(update={"engine": "spark"})
    partitions = [FilePartition(lake, path) for path in sys.argv[4:]]
    score(spec, lake, training.run, training, "1", partitions)
