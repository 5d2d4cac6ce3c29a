"""A PyTorch module and what trains it, as the state of a loop; in processes of their own: settings change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import FaultKit
from toy_loop import FOLDER

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks import TorchState


def new_checkpoints(root: Path, attempt: int = 1) -> Checkpoints:
    return Checkpoints(Lake(str(root / "lake")), FOLDER, attempt, 3, scratch=root / "scratch")


def round_trip(root: Path) -> list[bool]:
    """Whether a module, its optimizer and scheduler are as they were, for parts that differ in every step."""
    import torch

    class Module(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)
            self.register_buffer("calls", torch.zeros(1), persistent=False)

        def forward(self, rows: Any) -> Any:
            self.calls += 1
            return self.layer(rows)

    def make() -> tuple[Any, Any, Any, TorchState]:
        module = Module()
        optimizer = torch.optim.Adam(module.parameters())
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
        state = TorchState(new_checkpoints(root), module, optimizer=optimizer, scheduler=scheduler)
        return module, optimizer, scheduler, state

    module, optimizer, scheduler, state = make()
    for _ in range(5):
        module(torch.rand(4, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    state.save(root / "state")
    other, other_optimizer, other_scheduler, other_state = make()
    other_state.load(root / "state")
    moments = [optimizer.state_dict()["state"][0]["exp_avg"] for optimizer in (optimizer, other_optimizer)]
    return [
        torch.equal(module.layer.weight, other.layer.weight),
        torch.equal(*moments),
        scheduler.get_last_lr() == other_scheduler.get_last_lr(),
        torch.equal(other.calls, torch.full((1,), 5.0)),
        torch.are_deterministic_algorithms_enabled(),
    ]


def put(root: Path) -> tuple[str, ...]:
    """An operation that PyTorch has no deterministic form of, on any device."""
    import torch

    checkpoints = new_checkpoints(root)
    module = torch.nn.Linear(2, 2)
    state = TorchState(checkpoints, module)
    for segment in checkpoints.segments(state, steps=4):
        for _ in segment:
            with torch.no_grad():
                module.weight.put_(torch.tensor([0, 1]), torch.tensor([0.5, 0.25]))
    return new_checkpoints(root, attempt=2).reasons


def malicious(root: Path) -> None:
    """A file that would run code."""
    import torch

    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            import os

            return os.mkdir, (str(root / "run"),)  # type: ignore[return-value]

    torch.save({"states": Evil()}, root / "state")
    TorchState(new_checkpoints(root), torch.nn.Linear(1, 1)).load(root / "state")


def full(root: Path) -> None:
    import torch

    TorchState(new_checkpoints(root), torch.nn.Linear(1, 1)).save(Path("/dev/full"))


def test_everything_that_a_step_changes_is_kept(tmp_path: Path, faults: FaultKit) -> None:
    outcome = faults.run(tmp_path, round_trip, tmp_path)
    assert outcome.error is None, outcome.error
    assert outcome.value == [True] * 5


def test_an_operation_without_a_deterministic_form_is_told(tmp_path: Path, faults: FaultKit) -> None:
    outcome = faults.run(tmp_path, put, tmp_path)
    assert outcome.error is None, outcome.error
    assert outcome.value == ("PyTorch: put_ does not have a deterministic implementation",)


def test_a_file_cannot_run_code(tmp_path: Path, faults: FaultKit) -> None:
    outcome = faults.run(tmp_path, malicious, tmp_path)
    assert outcome.error is not None
    assert "Weights only load failed" in outcome.error
    assert not (tmp_path / "run").exists()


def test_a_full_disk_has_its_error_number(tmp_path: Path, faults: FaultKit) -> None:
    outcome = faults.run(tmp_path, full, tmp_path)
    assert outcome.error is not None
    assert "OSError: [Errno 28]" in outcome.error
