"""Whatever bytes are in a spec file: a spec, or problems that point into the file. Nothing else."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_lifecycle.spec.contract import ContractFile
from ml_lifecycle.spec.loader import read_spec
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.types import Strict

EXAMPLE = Path(__file__).parents[2] / "dags" / "models" / "flight_delay"
FILES: dict[str, type[Strict]] = {"model.yaml": ModelSpec, "contract.yaml": ContractFile}
FEW = settings(max_examples=250, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=5000)

# What breaks readers of YAML: tags, anchors, merges, odd numbers and times, control characters.
HOSTILE = [
    "!!python/object/apply:os.system ['true']",
    "&a [*a, *a]",
    "<<: *a",
    "0x7fffffffffffffffffff",
    "1e999",
    "-.inf",
    ".nan",
    "2013-13-45T99:99:99Z",
    "99999999999999999d",
    "-1d",
    "../../../etc/passwd",
    "{{ var.value.secret }}",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\ud7ff\U0001f600",
    "? - : [",
    "|\n  text\n",
    "'",
    '"\\x"',
    "[" * 200,
    "{a: " * 200,
    "no",
    "~",
    "---\n",
    "...\n",
    "%YAML 1.1\n---\n",
    "\t",
    "\r",
    "\ufeff",
]


def mutated(text: str, seed: int) -> bytes:
    """The file with a few edits as a hand, a merge or an attacker makes them."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        lines = text.split("\n")
        number = chance.randrange(len(lines))
        line = lines[number]
        match chance.randrange(8):
            case 0:
                del lines[number]
            case 1:
                lines.insert(number, chance.choice(lines))
            case 2:
                lines[number] = " " * chance.randint(1, 3) + line
            case 3:
                lines[number] = re.sub(r":.*", lambda _: f": {chance.choice(HOSTILE)}", line, count=1)
            case 4:
                lines[number] = line[: chance.randint(0, len(line))] + chance.choice(HOSTILE)
            case 5:
                lines[number] = line.replace(chance.choice(line or " "), "", 1)
            case 6:
                lines[number] = re.sub(
                    r"\w+:", f"{chance.choice(['name', 'nmae', '7', 'on'])}:", line, count=1
                )
            case _:
                lines = lines[: number + 1]
        text = "\n".join(lines)
    data = text.encode("utf-8", errors="surrogatepass")
    if chance.random() < 0.1:
        cut = chance.randrange(len(data) + 1)
        data = data[:cut] + chance.randbytes(chance.randint(1, 8)) + data[cut:]
    return data


def _read(name: str, data: bytes) -> bool:
    """Read it; whether it is a spec."""
    parsed, problems = read_spec(FILES[name], data, name)
    assert (parsed is None) == bool(problems)
    lines = data.decode("utf-8-sig", errors="replace").count("\n") + 1
    for problem in problems:
        assert problem.text.startswith(f"{name}:")
        assert len(problem.text) < 5000
        assert 0 <= problem.line <= lines + 1
        assert "\x1b" not in problem.text, "a terminal would obey it"
    return parsed is not None


@pytest.mark.parametrize("name", FILES)
@FEW
@given(seed=st.integers(0, 2**32))
def test_edited_files(name: str, seed: int) -> None:
    _read(name, mutated((EXAMPLE / name).read_text(), seed))


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
@MANY
@given(seed=st.integers(0, 2**32))
def test_edited_files_at_length(name: str, seed: int) -> None:
    _read(name, mutated((EXAMPLE / name).read_text(), seed))


@pytest.mark.parametrize("name", FILES)
@FEW
@given(data=st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes(name: str, data: bytes) -> None:
    assert not _read(name, data)


def test_the_edits_reach_both_ends() -> None:
    """Some edits leave a spec, most do not; or the tests above would prove little."""
    texts = {name: (EXAMPLE / name).read_text() for name in FILES}
    fine = [_read(name, mutated(texts[name], seed)) for name in FILES for seed in range(150)]
    assert 0.02 < sum(fine) / len(fine) < 0.6
