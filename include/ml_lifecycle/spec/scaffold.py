"""Makes a new model folder from the template."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from pathlib import Path

from ml_lifecycle.adapters.local_files import no_room_said
from ml_lifecycle.errors import SpecError

_TEMPLATE_NAME = "new_model"
# dag.py comes last: a DAG processor that looks meanwhile sees no half a folder.
_FILES = ("model.yaml", "contract.yaml", "features.py", "training.py", "dag.py")


def new_folder(name: str, into: Path) -> Path:
    """Write a working model folder called ``name``; nothing is ever overwritten.

    :raises SpecError: the name is unfit, ``into`` is no folder, or the folder exists. Retry: no.
    :raises NoSpaceError: the disk is full. Retry: yes, when there is room.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise SpecError(
            f"{name!r} cannot name a model: use lower-case letters, digits and '_', a letter first, "
            "63 characters at most"
        )
    if not into.is_dir():
        raise SpecError(f"{into}: no such folder: make it, or say where with --into")
    folder = into / name
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise SpecError(f"{folder} exists already and was left as it is: choose another name") from error
    try:
        with no_room_said(folder):
            for file in _FILES:
                text = (files("ml_lifecycle.spec") / "template" / file).read_text(encoding="utf-8")
                (folder / file).write_text(text.replace(_TEMPLATE_NAME, name), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder)  # or the next try would find it there, and leave it as it is
        raise
    return folder
