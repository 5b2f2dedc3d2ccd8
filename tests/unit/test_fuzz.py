"""Parsers against damaged inputs: refused with a reason or read, never broken, never slow."""

import random
import time
import zlib

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, harmed

ROUNDS = 300
SLOW_S = 2.0  # of CPU, for one input: the slowest takes a hundredth of that


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_it(name: str) -> None:
    target = TARGETS[name]
    chance = random.Random(zlib.crc32(name.encode()))
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    inputs = [path.read_bytes() for path in kept] + list(target.seeds)
    seeds = tuple(inputs)
    inputs += [harmed(seeds, target.words, chance) for _ in range(ROUNDS)]
    for data in inputs:
        begin_s = time.process_time()
        try:
            target.check(data)
        except Exception as error:
            raise AssertionError(f"{name}: {data[:300]!r}: {error!r}") from error
        assert time.process_time() - begin_s < SLOW_S, (name, data[:300])


def test_each_parser_reads_something() -> None:
    """A target whose seeds are all refused would show nothing."""
    for name, target in TARGETS.items():
        if name in ("track-block", "journal", "audit-report", "clock", "slurm-json"):
            continue  # their whole forms are made by the tests of their own
        assert any(_reads(target.run, seed) for seed in target.seeds), name


def _reads(run: object, seed: bytes) -> bool:
    assert callable(run)
    try:
        run(seed)
    except Exception:
        return False
    return True
