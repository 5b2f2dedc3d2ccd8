"""Parsers in C, under sanitizers, on what is kept in tests/fuzz/corpus and damage done to it."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
TARGETS = ("wire", "conf", "envelope", "paths", "args", "page")
DAMAGED = 300  # of each target; `make fuzz-c` looks longer, led by coverage


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("fuzz-c")
    argv = ["make", "-s", "-C", str(ROOT / "tests/fuzz/c"), f"OUT={out}", str(out / "replay")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    yield out / "replay"


def damaged(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(4)
        if what == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif what == 1:
            data[at:at] = chance.randbytes(chance.randrange(1, 40))
        elif what == 2:
            del data[at : at + chance.randrange(1, 40)]
        else:
            data[at:at] = data[chance.randrange(len(data) + 1) :][:200]
    return bytes(data[:8192])


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_parser_in_c(name: str, replay: Path, tmp_path: Path) -> None:
    kept = sorted((CORPUS / f"c-{name}").iterdir())
    assert kept
    chance = random.Random(name)
    files = list(map(str, kept))
    for number in range(DAMAGED):
        path = tmp_path / str(number)
        path.write_bytes(damaged(chance.choice(kept).read_bytes(), chance))
        files.append(str(path))
    argv = [str(replay), name, *files]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stdout == f"{len(files)} inputs\n"
