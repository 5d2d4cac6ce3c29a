"""A small model's whole life, in a stack of its own: what the other tests of this folder build on."""

from __future__ import annotations

from pathlib import Path

from small_model import land, write_model
from stack_kit import approve, log_in, running_stack

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.ledger.database import Database


def test_it_trains_and_goes_live(tmp_path: Path) -> None:
    write_model(tmp_path / "dags")
    with running_stack(tmp_path / "stack", tmp_path / "dags") as stack:
        end = land(Lake(str(stack.lake)))
        admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
        admin.wait_for_dags({"small__train", "small__promote"})
        admin.trigger("small__train", "first", {"as_of": end.isoformat()})
        admin.wait("small__train", "first", print)
        approve(stack, alice, "small__promote", "candidate__v1")
        champion = Releases(Database(stack.database_url)).champion("small")
        assert champion is not None
        assert champion.version == "1"
