"""A NIC that stamps packets, in tests: tests/c/clock/nic.c, what it keeps, and two engines on it.

``python -m tests.support.standin_nic`` runs in a process of its own, with the stand-in preloaded.
"""

import json
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fabricctl import layout
from fabricctl.agent.clockwork import Clockwork
from fabricctl.agent.log import NodeLog
from fabricctl.agent.record import Assignment
from fabricctl.clock import nics
from fabricctl.clock.probing import HARDWARE, Flow, Prober, Rail
from fabricctl.config import Config
from fabricctl.node.spawn import _nic_clocks
from fabricctl.records import Envelope, JobStart
from fabricctl.sections import RailsConfig

ROOT = Path(__file__).parents[2]
KEY = bytes(range(16))
TAI_NS = 37_000_000_000  # what ptp4l sets a NIC's clock to, ahead of CLOCK_REALTIME
FILTER_ALL, FILTER_PTP = 1, 12  # HWTSTAMP_FILTER_PTP_V2_EVENT
_FIELDS = struct.Struct("=2qd11q")
_NAMES = [
    "raw_ns", "shown_ns", "drift_ppb", "step_raw_ns", "step_ns", "tx_type", "rx_filter", "filters",
    "refuse_set", "refuse_read", "best", "read_ns", "lost", "sets",
]  # fmt: skip


def build(directory: Path) -> Path:
    library = directory / "nic.so"
    source = ROOT / "tests" / "c" / "clock" / "nic.c"
    argv = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source)]
    subprocess.run(argv, check=True)
    return library


class Nic:
    """Its file: fields to be read and written while it is used."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FIELDS.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FIELDS.size)
        self.path = path

    def begin(self) -> None:
        """On for all packets, 30 ppm fast, read in 4 us."""
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        self.set(raw_ns=raw_ns, shown_ns=time.time_ns() + TAI_NS, drift_ppb=30_000.0)
        self.set(tx_type=1, rx_filter=1, filters=1 << FILTER_ALL, best=1, read_ns=4_000)

    def get(self, name: str) -> float:
        return float(_FIELDS.unpack_from(self._memory)[_NAMES.index(name)])

    def set(self, **changes: float) -> None:
        values = dict(zip(_NAMES, _FIELDS.unpack_from(self._memory), strict=True))
        _FIELDS.pack_into(self._memory, 0, *(values | changes).values())


def run(library: Path, nic: Nic, *arguments: str) -> dict[str, object]:
    """What the process said."""
    environment = {**os.environ, "LD_PRELOAD": str(library), "STANDIN_NIC": str(nic.path)}
    argv = [sys.executable, "-m", "tests.support.standin_nic", *arguments]
    answer = subprocess.run(
        argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert isinstance(found, dict)
    return found


class _Two:
    """Engine 1, whose NIC stamps, and 2, for which the kernel does."""

    def __init__(self) -> None:
        self.choice = nics.choose("lo", nics.open_clocks(["lo"]))
        self.a = Prober(1, 1_001, KEY, [Rail("lo", "127.0.0.1", self.choice.fd)])
        self.b = Prober(2, 1_002, KEY, [Rail("lo", "127.0.0.1")])
        self.a.set_flows([Flow(0, 2, "127.0.0.1", self.b.ports[0], True)])
        self.b.set_flows([Flow(0, 1, "127.0.0.1", self.a.ports[0], False)])
        self.a.start(400)
        self.b.start(400)

    def told(self, enough: Callable[[NDArray[np.void]], bool], by_nic: bool) -> dict[str, object]:
        """What the samples from now on say, as soon as they are enough and engine 1 has made up
        its mind whose stamps it takes: it looks at 32 probes each way at a time."""
        self.a.take()
        parts, end = [self.a.take()], time.monotonic() + 20
        while True:
            stamps, seen = self.a.stamps(), np.concatenate(parts)
            if (enough(seen) and (stamps.source == HARDWARE) == by_nic) or time.monotonic() > end:
                break
            time.sleep(0.02)
            parts.append(self.a.take())
        ours = own_source(seen)
        told: dict[str, object] = {
            "hardware": int((ours == HARDWARE).sum()),
            "software": int((ours == 3).sum()),
            "error_ns": int(seen["error_ns"].max(initial=0)),
            "stamps": list(vars(stamps).values()),
        }
        for source, name in ((HARDWARE, "hardware_ahead_ns"), (3, "software_ahead_ns")):
            some = seen[ours == source]
            apart = (some["received_ns"] - some["sent_ns"]).astype(float)
            back, there = apart[some["inbound"] == 1], apart[some["inbound"] == 0]
            if len(back) and len(there):
                # Engine 1's clock before 2's, as the least delays show it: the truth is 0.
                told[name] = (back.min() - there.min()) / 2
        return told


def own_source(seen: NDArray[np.void]) -> NDArray[np.uint8]:
    """Of the stamps that engine 1 took."""
    return np.where(seen["inbound"] == 1, seen["received_source"], seen["sent_source"])


def _by_nic(least: int) -> Callable[[NDArray[np.void]], bool]:
    return lambda seen: all(
        ((own_source(seen) == HARDWARE) & (seen["inbound"] == way)).sum() >= least for way in (0, 1)
    )


def _by_kernel(last: int) -> Callable[[NDArray[np.void]], bool]:
    return lambda seen: len(seen) >= last and not (own_source(seen)[-last:] == HARDWARE).any()


def _agent(nic_stamps: str, run_dir: Path) -> dict[str, object]:
    """As the node service makes an agent of a job of two nodes whose rail is ``lo``."""
    clock = replace(Config().clock, nic_stamps=nic_stamps)
    config = replace(Config(), clock=clock, rails=RailsConfig(interfaces=("lo",)))
    start = JobStart(7, 1000, "alice", ("n1", "n2"), "n1", "c", Envelope("on", bytes(32)))
    files = layout.NodeFiles(run_dir)
    files.job_dir(7).mkdir(parents=True)
    told: list[str] = []
    log = run_dir / "log"
    opened = _nic_clocks(Assignment(start, files, run_dir, 0, 1), config, NodeLog(log))
    given = Assignment(start, files, run_dir, 0, 1, nic_clocks=opened)
    work = Clockwork(given, config, ("lo",), lambda _: None, lambda _, text, *__: told.append(text))
    work.run_due()
    assert work._clock is not None, told
    (_, _, way), *_ = work._clock.prober._engine.state()[3]  # -1: no clock of a NIC is read
    work.close()
    return {"used": way >= 0, "told": told, "log": log.read_text()}


def main(what: str, path: str) -> None:
    """``agent``: what a job's agent makes of it. ``offered``: what is chosen and done to the NIC.
    ``works``: two engines. ``life``: then it loses stamps, its clock is stepped, cannot be read
    any more, can again."""
    nic = Nic(Path(path))
    if what == "agent":
        print(json.dumps(_agent(sys.argv[2], Path(path).parent / "run")))
        return
    if what == "offered":
        told = nics.enable("lo")
        choice = nics.choose("lo", nics.open_clocks(["lo"]))
        print(json.dumps({"enabled": told, "used": choice.fd >= 0, "why": choice.why}))
        return
    two, found = _Two(), {}
    found["works"] = two.told(_by_nic(40), by_nic=True)
    if what == "life":
        nic.set(lost=30)
        found["loses"] = two.told(_by_nic(40), by_nic=True)
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        nic.set(lost=0, step_raw_ns=raw_ns, step_ns=5_000_000)
        found["stepped"] = two.told(_by_nic(40), by_nic=True)
        nic.set(refuse_read=5)  # EIO
        two.told(_by_kernel(20), by_nic=False)
        found["refuses"] = two.told(_by_kernel(40), by_nic=False)
        nic.set(refuse_read=0)
        found["again"] = two.told(_by_nic(40), by_nic=True)
    two.a.stop()
    two.b.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], os.environ["STANDIN_NIC"])
