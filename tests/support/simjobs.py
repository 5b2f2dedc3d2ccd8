"""Jobs whose lost time is known: a bulk-synchronous program simulated with faults, as node rows.

All ranks compute, then exchange, then wait for the slowest. The pace of the job is one number a
tenth of a second; faults lower it, noise moves it, and every node's counters follow from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fabricctl.store import dtypes, schema
from fabricctl.store.schema import LaunchEvent, LinkEvent, StallKind, StepEvent
from fabricctl_analysis.model import Attempt, JobFacts, Report
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.summarise import summarise

S = 1_000_000_000
BEGIN_NS = 1_790_000_000 * S
KINDS = ("link_down", "host_stopped", "storage", "host_memory", "host_cpu", "steal", "rank_slow",
         "unknown", "gpu", "queueing", "imbalance",
         "restart", "stall")  # fmt: skip
CAUSE = {kind: kind for kind in KINDS} | {"imbalance": "rank_slow", "stall": "host_stopped"}
# What is left of the job's pace under each.
_LEFT = {"link_down": 0.5, "host_stopped": 0.0, "storage": 0.3, "host_memory": 0.4,
         "host_cpu": 0.6, "steal": 0.6, "rank_slow": 0.5, "unknown": 0.5,
         "gpu": 0.7, "queueing": 0.4, "imbalance": 0.6, "restart": 0.0, "stall": 0.0,
         "suspended": 0.0}  # fmt: skip
_STEP = 0.05  # s, of the simulation


@dataclass(frozen=True)
class Fault:
    kind: str
    node: int
    begin_s: float
    length_s: float


@dataclass(frozen=True)
class Sim:
    """One job. ``iteration_s`` above the samples' distance makes its traffic come in bursts."""

    seed: int
    faults: Sequence[Fault] = ()
    nodes: int = 4
    seconds: float = 600.0
    hz: float = 1.0
    noise: float = 0.03
    iteration_s: float = 0.2
    told: bool = False  # the program tells its iterations
    over: Literal["rails", "ports", "memory"] = "rails"  # TCP, RDMA, or nothing that is counted
    ahead_s: Sequence[float] = ()  # of the nodes' own clocks, with a job clock that knows

    @property
    def lost_s(self) -> float:
        """Node-seconds, of all faults together."""
        return float((1 - self._left(self._times())).sum() * _STEP) * self.nodes

    def lost_to_s(self, fault: Fault) -> float:
        """Of one that overlaps no other."""
        at = self._times()
        steps = ((at >= fault.begin_s) & (at < fault.begin_s + fault.length_s)).sum()
        return float(steps) * _STEP * (1 - _LEFT[fault.kind]) * self.nodes

    def _times(self) -> np.ndarray:
        return np.arange(0.0, self.seconds, _STEP)

    def _left(self, at: np.ndarray) -> np.ndarray:
        left = np.ones(len(at))
        for fault in self.faults:
            here = (at >= fault.begin_s) & (at < fault.begin_s + fault.length_s)
            left = np.where(here, np.minimum(left, _LEFT[fault.kind]), left)
        return left

    def _pace(self) -> np.ndarray:
        """With noise that lasts for some tenths of a second, as schedulers' does."""
        random = np.random.default_rng(self.seed)
        at = self._times()
        noise = random.normal(0, 1, len(at) + 20)
        noise = np.convolve(noise, np.ones(5) / 5**0.5, "same")[: len(at)]
        return np.clip(self._left(at) * (1 + 5 * self.noise * noise * _STEP**0.5), 0, None)

    def report(self, attempts: tuple[Attempt, ...] = ()) -> Report:
        names = tuple(f"n{nth}" for nth in range(self.nodes))
        facts = JobFacts(1, None, None, 0, "alice", "sim", "on", 0, names, "sim", 1)
        pace = self._pace()
        rows = (self._node(nth, pace) for nth in range(self.nodes))
        end_ns = BEGIN_NS + int(self.seconds * S)
        return summarise(facts, rows, BEGIN_NS, end_ns, attempts=attempts)

    def _node(self, nth: int, pace: np.ndarray) -> NodeRows:
        random = np.random.default_rng((self.seed, nth))
        at = np.arange(0.02 + nth * 0.01, self.seconds, 1 / self.hz)
        tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
        tables["rail"] = self._rails(nth, pace, at)
        tables["host"], tables["job"] = self._host(nth, at, random)
        tables["link_event"] = self._events(nth)
        if self.told:
            tables["rank_position"] = self._positions(nth, pace, at)
        tables["launch"], tables["stall"] = self._launches(nth), self._stalls(nth)
        tables["mpi_time"] = self._mpi(nth, pace, at, random)
        tables["rank"] = _rows("rank", np.array([1.0]))
        tables["rank"]["ranks"] = self.nodes
        if self.over == "ports":
            tables["rdma_port"] = self._ports(pace, at)
        tables["tcp"], tables["gpu"] = self._tcp(nth, at, random), self._gpu(nth, at)
        clock = _rows("clock", np.arange(0, self.seconds, 5.0))
        clock["width_ns"] = 100
        if self.ahead_s:
            clock["time_real_ns"] += int(self.ahead_s[nth] * S)
            job_clock = _rows("job_clock", np.arange(1.0, self.seconds))
            job_clock["job_ns"] = job_clock["time_mono_ns"]
            job_clock["status"] = 1
            tables["job_clock"] = job_clock
        tables["clock"] = clock
        steps = _rows("step", np.array([0.0, self.seconds]))
        steps["step"], steps["event"] = b"0", (StepEvent.BEGIN, StepEvent.END)
        tables["step"] = steps
        return place(
            f"n{nth}", ("r0", "r1"), [Boot(tables)], sample_hz=self.hz, begin_ns=BEGIN_NS,
            end_ns=BEGIN_NS + int(self.seconds * S),
        )  # fmt: skip

    def _exchanged(self, pace: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Iterations' worth of exchange, which takes the last fifth of each iteration."""
        done = np.concatenate([[0.0], np.cumsum(pace) * _STEP])  # seconds' worth of work
        iterations = np.interp(at, np.arange(len(done)) * _STEP, done) / self.iteration_s
        if self.iteration_s <= 1 / self.hz:
            return iterations
        return np.asarray(np.floor(iterations) + np.clip((iterations % 1 - 0.8) / 0.2, 0, 1))

    def _ports(self, pace: np.ndarray, at: np.ndarray) -> np.ndarray:
        rows = _rows("rdma_port", at)
        rows["port"], rows["active"] = 0, 1
        for way in ("rx", "tx"):
            rows[f"{way}_bytes"] = np.rint(1e8 * self.iteration_s * self._exchanged(pace, at))
        return rows

    def _rails(self, nth: int, pace: np.ndarray, at: np.ndarray) -> np.ndarray:
        moved = 1e8 * self.iteration_s * self._exchanged(pace, at)
        if self.over != "rails":
            moved = at * 100.0
        both = []
        for rail in range(2):
            rows = _rows("rail", at)
            rows["rail"], rows["carrier"], rows["carrier_changes"] = rail, 1, 1
            for way in ("rx", "tx"):
                rows[f"{way}_bytes"] = np.rint(moved) + 10**9
                for what in ("packets", "errors", "dropped"):
                    rows[f"{way}_{what}"] = 0
            for fault in self.faults:
                if (fault.kind, fault.node, rail) == ("link_down", nth, 0):
                    end_s = fault.begin_s + fault.length_s
                    rows["carrier"] &= ~((at >= fault.begin_s) & (at < end_s))
                    rows["carrier_changes"] += (at >= fault.begin_s) + (at >= end_s).astype("u4")
            both.append(rows)
        return np.sort(np.concatenate(both), order="time_mono_ns", kind="stable")

    def _host(
        self, nth: int, at: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        fine = self._times()
        rate = {name: np.zeros(len(fine)) for name in ("own", "other", "steal", "mem", "io", "cpu")}
        rate["own"] += 1.0
        rate["other"] += 0.05 + 0.05 * random.random(len(fine))
        rate["io"] += 0.02 * random.random(len(fine))
        for fault in self.faults:
            here = (fine >= fault.begin_s) & (fine < fault.begin_s + fault.length_s)
            if fault.node == nth or fault.kind == "suspended":
                for name, value in _HOST.get(fault.kind, {}).items():
                    rate[name][here] = value
        grown = {name: np.interp(at, np.concatenate([[0], fine + _STEP]),
                                 np.concatenate([[0], np.cumsum(values) * _STEP]))
                 for name, values in rate.items()}  # fmt: skip
        host, job = _rows("host", at), _rows("job", at)
        for name in ("nice", "system", "iowait", "irq", "softirq"):
            host[f"cpu_{name}_ns"] = 0
        host["cpu_user_ns"] = np.rint((grown["own"] + grown["other"]) * S)
        host["cpu_steal_ns"] = np.rint(grown["steal"] * S)
        host["cpu_idle_ns"] = np.rint(np.maximum(0, 4 * at - grown["own"] - grown["other"]) * S)
        host["memory_total_bytes"], host["memory_available_bytes"] = 8 << 30, 4 << 30
        for column, name in (("memory_some", "mem"), ("memory_full", "mem"), ("io_some", "io"),
                             ("io_full", "io"), ("cpu_some", "cpu")):  # fmt: skip
            host[f"psi_{column}_us"] = np.rint(grown[name] * 1e6)
        job["cpu_ns"], job["memory_bytes"] = np.rint(grown["own"] * S), 1 << 30
        job["processes"] = 2
        return host, job

    def _here(self, kind: str, nth: int, at: np.ndarray) -> np.ndarray:
        mine = [f for f in self.faults if (f.kind, f.node) == (kind, nth)]
        spans = [(at >= f.begin_s) & (at < f.begin_s + f.length_s) for f in mine]
        return np.any(spans, axis=0) if spans else np.zeros(len(at), bool)

    def _tcp(self, nth: int, at: np.ndarray, random: np.random.Generator) -> np.ndarray:
        rows = _rows("tcp", at)
        lossy = self._here("queueing", nth, at)
        rows["out_segments"] = np.arange(len(at)) * 10_000
        rows["retransmitted"] = np.cumsum(np.where(lossy, 300, random.integers(0, 10, len(at))))
        return rows

    def _mpi(
        self, nth: int, pace: np.ndarray, at: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """One rank a node: a fifth of its time in MPI, all that it waits for a slower one too, and
        a thousand calls an iteration."""
        rows = _rows("mpi_time", at)
        rows["rank"], rows["launch"], rows["op"] = nth, 0, b"MPI_Allreduce"
        slow = self._left(at) < 1
        late = np.any([self._here("imbalance", n, at) for n in range(self.nodes)], axis=0)
        share = np.where(slow, 0.6, 0.2) + random.normal(0, 0.02, len(at))
        share = np.where(late & self._here("imbalance", nth, at), 0.05, share)
        rows["time_ns"] = np.rint(np.cumsum(share) / self.hz * S)
        rows["calls"] = np.floor(1000 * self._exchanged(pace, at))
        rows["bytes"] = np.arange(len(at))
        rows["most_ns"] = S // 10
        return rows

    def _positions(self, nth: int, pace: np.ndarray, at: np.ndarray) -> np.ndarray:
        rows = _rows("rank_position", at)
        done = np.concatenate([[0.0], np.cumsum(pace) * _STEP])
        work = np.interp(at, np.arange(len(done)) * _STEP, done)
        rows["rank"], rows["launch"], rows["op"] = nth, 0, b"MPI_Allreduce"
        rows["step"] = np.floor(work / self.iteration_s)
        return rows

    def _launches(self, nth: int) -> np.ndarray:
        """The first node's agent tells that another died, and when the program goes on."""
        mine = [f for f in self.faults if f.kind == "restart" and nth == 0]
        ends = [at for f in mine for at in (f.begin_s + 2, f.begin_s + f.length_s - 1)]
        rows = _rows("launch", np.array(ends))
        rows["event"] = [LaunchEvent.NODE_DEAD, LaunchEvent.START] * len(mine)
        rows["node"] = [node for f in mine for node in (f"n{f.node}".encode(), b"n[0-3]")]
        return rows

    def _stalls(self, nth: int) -> np.ndarray:
        mine = [f for f in self.faults if f.kind == "stall" and nth == 0]
        ends = [t for f in mine for t in (f.begin_s + 3, f.begin_s + f.length_s)]
        rows = _rows("stall", np.array(ends))
        rows["kind"] = [StallKind.RANK, StallKind.NONE] * len(mine)
        rows["node"] = [node for f in mine for node in (f"n{f.node}".encode(), b"")]
        rows["since_mono_ns"] = [int(s * S) for f in mine for s in (f.begin_s, 0)]
        rows["text"] = b"rank 2 stands still"
        return rows

    def _gpu(self, nth: int, at: np.ndarray) -> np.ndarray:
        rows = _rows("gpu", at)
        rows["gpu"] = 0
        rows["throttle_reasons"] = np.where(self._here("gpu", nth, at), 0x40, 0)
        return rows

    def _events(self, nth: int) -> np.ndarray:
        mine = [f for f in self.faults if f.kind == "link_down" and f.node == nth]
        ends = [at for f in mine for at in (f.begin_s, f.begin_s + f.length_s)]
        rows = _rows("link_event", np.array(ends))
        rows["rail"] = 0
        rows["event"] = [LinkEvent.CARRIER_DOWN, LinkEvent.CARRIER_UP] * len(mine)
        rows["carrier_changes"] = 2 + np.arange(len(rows))
        return rows


_HOST = {
    "suspended": {"own": 0.0},
    "host_stopped": {"own": 0.0},
    "storage": {"io": 0.9},
    "host_memory": {"mem": 0.8},
    "host_cpu": {"other": 2.0},
    "steal": {"steal": 0.9},
    "rank_slow": {"own": 0.4},
}


def _rows(table: str, at_s: np.ndarray) -> np.ndarray:
    rows = dtypes.empty(schema.BY_NAME[table], len(at_s))
    rows["time_mono_ns"] = np.rint(at_s * S).astype(np.int64)
    if "time_real_ns" in (rows.dtype.names or ()):
        rows["time_real_ns"] = rows["time_mono_ns"] + BEGIN_NS
    return rows
