"""The second trainer: a network on the same columns, on a GPU if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from torch import nn

from ml_lifecycle.training.frameworks import TorchState
from ml_lifecycle.training.torch_estimator import TorchClassifier

UNSEEN_SHARE = 0.02


@dataclass(frozen=True)
class Settings:
    """``training.parameters`` of model.yaml, the trainer's name left out."""

    epochs: int = 8
    batch_rows: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    width: int = 96
    dropout: float = 0.2


class Network(nn.Module):
    """Embedded categories, and numbers with a flag beside each that says whether it is missing.

    Takes one float32 tensor: first the categories' codes, -1 for one that no training row had, then the
    numbers, scaled. In training some categories are taken for unseen ones, so that it learns about those.
    """

    def __init__(self, categories: list[int], numbers: int, width: int, dropout: float) -> None:
        super().__init__()
        sizes = [min(16, 2 + count // 4) for count in categories]
        self.embeddings = nn.ModuleList(
            nn.Embedding(count + 1, size) for count, size in zip(categories, sizes, strict=True)
        )
        inputs = sum(sizes) + 2 * numbers
        self.layers = nn.Sequential(
            *(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(width, width // 2), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(width // 2, 1),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        codes = rows[:, : len(self.embeddings)].to(torch.int64) + 1
        numbers = rows[:, len(self.embeddings) :]
        if self.training:
            codes = codes * (torch.rand(codes.shape, device=rows.device) >= UNSEEN_SHARE)
        missing = torch.isnan(numbers)
        parts = [embedding(codes[:, place]) for place, embedding in enumerate(self.embeddings)]
        parts += [torch.where(missing, 0.0, numbers).clamp(-4, 4), missing.to(torch.float32)]
        return self.layers(torch.cat(parts, dim=1))


def train_network(
    training_set: pd.DataFrame,
    labels: pd.Series,
    categories: list[str],
    settings: Settings,
    seed: int,
    checkpoints: Any,
) -> Pipeline:
    """A network fitted by AdamW, an epoch a segment; what it answers depends on data and seed alone."""
    numbers = [column for column in training_set.columns if column not in categories]
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), categories),
        (StandardScaler(), numbers),
    )
    encoded = encode.fit_transform(training_set).astype(np.float32)
    sizes = [len(known) for known in encode.transformers_[0][1].categories_]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    # Made on the CPU: the same first weights whatever it trains on.
    network = Network(sizes, len(numbers), settings.width, settings.dropout).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    batches = -(-len(encoded) // settings.batch_rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * batches
    )
    state = TorchState(checkpoints, network, optimizer=optimizer, schedule=schedule)
    rows = torch.from_numpy(encoded).to(device)
    truth = torch.from_numpy(labels.to_numpy(np.float32)).to(device)
    loss_of = nn.BCEWithLogitsLoss()
    for segment in checkpoints.segments(state, steps=settings.epochs, every=1):
        for _ in segment:
            network.train()
            # Drawn on the CPU: the same order whatever it trains on.
            for batch in torch.randperm(len(rows)).to(device).split(settings.batch_rows):
                optimizer.zero_grad()
                loss_of(network(rows[batch])[:, 0], truth[batch]).backward()
                optimizer.step()
                schedule.step()
        checkpoints.measure(make_pipeline(encode, TorchClassifier(network, [0, 1])))
    return make_pipeline(encode, TorchClassifier(network, [0, 1]))
