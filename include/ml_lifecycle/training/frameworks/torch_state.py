"""PyTorch in segments: a module and what trains it, as one state."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ml_lifecycle.training.checkpoints import Checkpoints

_NOT_DETERMINISTIC = "does not have a deterministic implementation"


class TorchState:
    """A module, its optimizer and whatever else has ``state_dict`` and ``load_state_dict``.

    Switches PyTorch's deterministic algorithms on. An operation that has none runs all the same, and the
    training's record says so. Make it before anything runs on a GPU.

    What the checkpoints hold is put into the objects given here, which stay the ones to use. Make iterators
    over batches within the segment, from PyTorch's own generator or one seeded with ``segment.seed``.

    :param module: moved to its device already
    :param others: optimizer, scheduler, gradient scaler, … by any name
    """

    def __init__(self, checkpoints: Checkpoints, module: Any, **others: Any) -> None:
        self._module = module
        self._parts = {"module": module, **others}
        _switch_on_determinism(checkpoints)

    def save(self, path: Path) -> None:
        """Write tensors and plain values only."""
        import torch

        states = {name: part.state_dict() for name, part in self._parts.items()}
        with path.open("wb") as file:  # PyTorch's own file has no error number when the disk is full
            torch.save({"states": states, "buffers": self._other_buffers()}, file)

    def load(self, path: Path) -> None:
        """Take all of it from such a file, which may name no code to run."""
        import torch

        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(saved["states"].pop(name))
        with torch.no_grad():
            for name, buffer in self._other_buffers().items():
                buffer.copy_(saved["buffers"][name])

    def _other_buffers(self) -> dict[str, Any]:
        """Buffers that the module's own state leaves out (``persistent=False``); a step may change them."""
        kept = self._module.state_dict().keys()
        return {name: buffer for name, buffer in self._module.named_buffers() if name not in kept}


def _switch_on_determinism(checkpoints: Checkpoints) -> None:
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("always", message=f".*{_NOT_DETERMINISTIC}")
    show = warnings.showwarning

    def tell(message: Warning | str, *rest: Any, **named: Any) -> None:
        if _NOT_DETERMINISTIC in str(message):
            checkpoints.not_reproducible(f"PyTorch: {str(message).partition(',')[0]}")
        else:
            show(message, *rest, **named)

    warnings.showwarning = tell
