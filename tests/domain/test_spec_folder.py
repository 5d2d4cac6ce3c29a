"""Model folders: digests, the packed folder, and modules that never collide."""

import hashlib
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec import folder as folder_module
from ml_lifecycle.spec.folder import load_folder, load_module, pack_folder
from ml_lifecycle.spec.scaffold import new_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return new_folder("churn", tmp_path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_folder_is_loaded(folder: Path) -> None:
    loaded = load_folder(folder)
    assert loaded.path == folder
    assert loaded.spec.name == "churn"
    assert loaded.contracts["orders"].version == "1.0"
    assert loaded.code_digest == hashlib.sha256(pack_folder(folder)).hexdigest()


def test_a_folder_is_loaded_by_a_relative_path_and_by_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = load_folder(folder).code_digest
    monkeypatch.chdir(folder)
    assert load_folder(".").code_digest == digest
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "churn"
    link.symlink_to(folder, target_is_directory=True)
    assert load_folder(link).code_digest == digest


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing: no such folder"):
        load_folder(tmp_path / "nothing")


def test_the_spec_digest_is_of_the_meaning(folder: Path) -> None:
    before = load_folder(folder)
    edit(folder / "model.yaml", "  timeout: 1h\n", "  # a comment\n  timeout:   60m\n  seed: 0\n")
    after = load_folder(folder)
    assert after.spec_digest == before.spec_digest
    assert after.code_digest != before.code_digest
    edit(folder / "model.yaml", "max_iter: 100", "max_iter: 101")
    assert load_folder(folder).spec_digest != before.spec_digest


def test_the_packed_folder_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    contents = {"model.yaml": b"a: 1\n", "features.py": b"x = 1\n", "data/codes.csv": b"1\n"}
    packed = []
    for number, names in enumerate([list(contents), list(reversed(contents))]):
        folder = tmp_path / f"copy{number}"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(contents[name])
            (folder / name).chmod(0o600 if number else 0o755)
            os.utime(folder / name, (1e9 + number, 1e9 + number))
        packed.append(pack_folder(folder))
    assert packed[0] == packed[1]
    # The same on every machine and Python: the digest names the code in every record.
    assert (
        hashlib.sha256(packed[0]).hexdigest()
        == "17019eedf72881a3e3db41017f1bf4f68334fb65d694861c2e9a29762d586c0f"
    )
    with zipfile.ZipFile(io.BytesIO(packed[0])) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents


def test_caches_and_hidden_files_are_left_out(folder: Path) -> None:
    before = pack_folder(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "features.pyc").write_bytes(b"x")
    (folder / ".env").write_text("SECRET=1")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    assert pack_folder(folder) == before


def test_a_link_within_the_folder_is_packed_as_its_content(folder: Path) -> None:
    (folder / "link.sql").symlink_to("dag.py")
    with zipfile.ZipFile(io.BytesIO(pack_folder(folder))) as archive:
        assert archive.read("link.sql") == (folder / "dag.py").read_bytes()


def test_links_that_leave_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    link = folder / "notes.txt"
    link.symlink_to("../secret")
    with pytest.raises(SpecError, match=r"notes\.txt: a link that leads out of the folder"):
        pack_folder(folder)
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(SpecError, match=r"notes\.txt: cannot be read"):
        load_folder(folder)
    link.unlink()
    link.symlink_to("notes.txt")
    with pytest.raises(SpecError, match=r"notes\.txt: cannot be read"):
        load_folder(folder)
    link.unlink()
    link.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(SpecError, match=r"notes\.txt: a link to a folder"):
        pack_folder(folder)


def test_what_is_no_plain_file_is_refused_unopened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(SpecError, match="pipe: not a plain file"):
        pack_folder(folder)


def test_a_large_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(folder / "data.parquet", "wb") as file:
        file.truncate(folder_module.MAX_FILE_BYTES + 1)
    with pytest.raises(SpecError, match=r"data\.parquet: 5,242,881 bytes, at most 5,242,880 are allowed"):
        pack_folder(folder)
    (folder / "data.parquet").unlink()
    monkeypatch.setattr(folder_module, "MAX_FILES", 4)
    with pytest.raises(SpecError, match="more than 4 files"):
        pack_folder(folder)


def test_a_file_name_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "a\nb").write_text("x")
    with pytest.raises(SpecError, match=r"file name 'a\\nb' has unprintable characters"):
        pack_folder(folder)


def write_module(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "features.py").write_text(text)
    return folder


def test_modules_of_two_folders_and_of_two_versions_never_collide(tmp_path: Path) -> None:
    first = load_module(write_module(tmp_path / "a", "VALUE = 1"), "features")
    second = load_module(write_module(tmp_path / "b", "VALUE = 1"), "features")
    again = load_module(tmp_path / "a", "features")
    # The same length within the same second: Python's bytecode cache would not notice.
    changed = load_module(write_module(tmp_path / "a", "VALUE = 2"), "features")
    assert first is again
    assert len({first.__name__, second.__name__, changed.__name__}) == 3
    assert (first.VALUE, second.VALUE, changed.VALUE) == (1, 1, 2)
    assert "features" not in sys.modules
    assert not (tmp_path / "a" / "__pycache__").exists()
    assert str(tmp_path / "a") not in sys.path


def test_a_module_knows_its_file_and_its_own_name(tmp_path: Path) -> None:
    text = """\
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Setting:
    name: str

SIBLING = (Path(__file__).parent / "codes.csv").read_text()
"""
    folder = write_module(tmp_path / "a", text)
    (folder / "codes.csv").write_text("1")
    first = load_module(folder, "features")
    assert first.Setting("x").name == "x"
    assert sys.modules[first.__name__] is first
    (folder / "codes.csv").write_text("2")
    assert load_module(folder, "features").SIBLING == "2"
    assert first.SIBLING == "1"


def write_modules(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_files_of_a_folder_import_each_other_and_no_other_folders(tmp_path: Path) -> None:
    features = "from . import codes\nfrom .lib.names import NAME\nVALUE = codes.VALUE + NAME"
    training = "from .features import VALUE\ndef later():\n    from .late import WHEN\n    return WHEN"
    for folder in ("a", "b"):
        write_modules(
            tmp_path / folder,
            features=features,
            training=training,
            codes=f"VALUE = {folder!r}",
            lib__in__names="from ..codes import VALUE\nNAME = VALUE.upper()",
            late="WHEN = 'before'",
        )
    first, second = (load_module(tmp_path / folder, "features") for folder in ("a", "b"))
    assert (first.VALUE, second.VALUE) == ("aA", "bB")
    training_a = load_module(tmp_path / "a", "training")
    assert training_a.VALUE is first.VALUE
    assert not {"codes", "lib", "late", "features", "training"} & set(sys.modules)

    # Of another state; what is imported only now by the state of before is still of that state.
    write_modules(tmp_path / "a", late="WHEN = 'after!'", codes="VALUE = 'x'")
    changed = load_module(tmp_path / "a", "training")
    assert (changed.VALUE, changed.later()) == ("xX", "after!")
    assert (training_a.VALUE, training_a.later()) == ("aA", "before")
    assert load_module(tmp_path / "a", "features").codes.__file__ == str(tmp_path / "a" / "codes.py")
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_class_of_a_second_file_is_pickled_and_found_again(tmp_path: Path) -> None:
    folder = write_modules(
        tmp_path / "a", features="from .shapes import Box", shapes="class Box:\n    size = 3"
    )
    box = load_module(folder, "features").Box()
    assert pickle.loads(pickle.dumps(box)).size == 3


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("from .codes import VALUE", "codes.py:2: ZeroDivisionError: division by zero"),
        ("from .broken import VALUE", "broken.py:1: SyntaxError: '(' was never closed"),
        (
            "import fine\n",
            r"No module named 'fine' (a file of the same folder is imported by a dot: from .fine",
        ),
        ("\nfrom . import missing", "features.py:3: ImportError: cannot import name 'missing'"),
    ],
)
def test_a_second_file_that_fails_is_named_and_leaves_nothing(
    tmp_path: Path, features: str, message: str
) -> None:
    folder = write_modules(
        tmp_path / "a", features=f"from . import fine\n{features}", codes="\n1 / 0", broken="x = (", fine=""
    )
    before = set(sys.modules)
    with pytest.raises(SpecError) as caught:
        load_module(folder, "features")
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "features.py:1: ModuleNotFoundError: No module named"),
        ("x = 1\n\ndef f():\n    return 1 / 0\n\nf()", "features.py:4: ZeroDivisionError: division by zero"),
        ("x = (", "features.py:1: SyntaxError: '(' was never closed"),
    ],
)
def test_a_module_that_fails_says_where_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    folder = write_module(tmp_path / "a", text)
    before = set(sys.modules)
    with pytest.raises(SpecError) as caught:
        load_module(folder, "features")
    assert message in str(caught.value)
    assert caught.value.__cause__ is not None
    assert not {name for name in set(sys.modules) - before if name.startswith("ml_lifecycle_folder")}


def test_a_missing_module(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"training\.py: missing file"):
        load_module(write_module(tmp_path / "a", ""), "training")
