"""Where chance comes from in a training: every generator that is not given a seed of its own."""

from __future__ import annotations

import hashlib
import random
import sys

import numpy as np


def seed_chance(seed: int) -> None:
    """Seed ``random``, numpy's global generator and, if it is imported, PyTorch's, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed % 2**32)


def seed_of(*parts: int) -> int:
    """A seed made of others: of 31 bits, which is what every library takes."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
