"""Stalls of a real MPI program: the short form of bench/stalls.py."""

import os
import signal

import pytest

from bench.stalls import inject, running

pytestmark = pytest.mark.lab


def test_each_stall_is_laid_to_its_rank_and_a_long_phase_to_none() -> None:
    """The mismatch comes last: it breaks the program."""
    with running() as program:
        for nth, kind in enumerate(("clean", "stopped", "slow", "mismatched")):
            result = inject(program, kind, nth % 4)
            assert result.took_s is not None, f"{kind}: {result.text}"
            if kind == "stopped":
                os.kill(program.pid(nth % 4), signal.SIGCONT)
            if kind != "mismatched":
                program.wait_moving()
