"""How the cost of protection grows with the job: 64 to 10,000 nodes, the agents' own logic.

Every simulated node is the real :class:`fabricctl.agent.peers.Peers` with a UDP socket of its own
on loopback; every message is sealed, sent, received, opened and checked for freshness as an agent
does it. Time is virtual: it jumps to the next message that is due as soon as none is on its way, so
that seconds are those of a job, and CPU time is what the work took here. Collection is the real
writer of parts and the real merge; the node list is read by the real codec.

    python -m bench.scale [--nodes 64 256 1000 4000 10000] [--parts 64 256 1000 4000 10000]
                          [--rows 3600] [--json FILE]

``--nodes`` or ``--parts`` without numbers leaves that half out; ``--rows``: seconds of a job that
parts hold.

Prints a table and the exponent of growth of each column (1: linear).
"""

import argparse
import gc
import heapq
import json
import os
import random
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fabricctl import hostlist, layout, wire
from fabricctl.agent.blocks import find_others
from fabricctl.agent.peers import Send
from fabricctl.records import JobStart
from fabricctl.store import collect, dtypes, part, schema
from fabricctl.store.journal_reader import Journal

KEY = bytes(range(32))
S = 1_000_000_000
T0 = 1_790_000_000 * S
PROLOGS_S = 2.0  # prologs of one job start this far apart
STEADY_ROUNDS = 2  # times that everybody says hello, of which CPU per node is the mean
DEATH_WAIT_S = 2000.0


@dataclass
class Figures:
    """One size of job. Times are virtual seconds, CPU is of this machine."""

    nodes: int
    known_s: float = 0.0  # until every agent knows that all are there
    messages_head: float = 0.0  # the busiest coordinator received, a second of the start
    start_cpu_ms: float = 0.0  # of one ordinary node
    head_cpu_ms: float = 0.0  # of the busiest coordinator, in the start
    steady_cpu_ppm: float = 0.0  # of a core, one ordinary node
    steady_head_ppm: float = 0.0  # of a core, the busiest coordinator
    death_s: float = 0.0  # until every agent knows that one does not answer
    list_ms: float = 0.0  # a node reads the start request, with a list that does not fold
    memory_kib: float = 0.0  # of what one node keeps of the others


class Node:
    """One agent's part in finding the others."""

    def __init__(self, names: tuple[str, ...], number: int, begin_s: float) -> None:
        self.name, self.alive, self.cpu_s, self.received = names[number], True, 0.0, 0
        rng = random.Random(number)
        self.peers = find_others(names, names[number], begin_s, lambda *_: None, rng)
        self.fresh, self.seq = wire.Freshness(), 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", 0))
        self.address = self.socket.getsockname()

    def sealed(self, send: Send) -> bytes:
        self.seq += 1
        head = {"job": "7", "node": self.name, "life": "1", "seq": str(self.seq)}
        return wire.seal({**head, **send.fields}, KEY)


class Job:
    """All agents of a job, on one virtual clock."""

    def __init__(self, count: int) -> None:
        self.names = tuple(f"n{number}" for number in range(count))
        chance = random.Random(count)
        self.nodes: list[Node] = []
        for number in range(count):
            node = Node(self.names, number, chance.uniform(0, PROLOGS_S))
            self.nodes.append(node)
        self.by_name = {node.name: node for node in self.nodes}
        self.now_s = 0.0
        self.due = [(node.peers.begin_s, number) for number, node in enumerate(self.nodes)]
        heapq.heapify(self.due)

    def close(self) -> None:
        for node in self.nodes:
            node.socket.close()

    def _deliver(self, node: Node, sends: Sequence[Send]) -> list[Node]:
        """Puts messages on the wire; whom they went to."""
        to = []
        for send in sends:
            target = self.by_name[send.node]
            node.socket.sendto(node.sealed(send), target.address)
            to.append(target)
        return to

    def _receive(self, node: Node) -> list[Node]:
        begin_s = time.thread_time()
        to: list[Node] = []
        while True:
            try:
                data = node.socket.recv(65_536)
            except BlockingIOError:
                break
            if not node.alive:
                continue
            message = wire.open_sealed(data, KEY)
            node.received += 1
            life, seq = wire.number(message, "life"), wire.number(message, "seq")
            if node.fresh.accepts(message["node"], life, seq):
                to += self._deliver(node, node.peers.receive(message, self.now_s))
        node.cpu_s += time.thread_time() - begin_s
        return to

    def run(self, until_s: float) -> None:
        """What happens up to that time."""
        while self.due and self.due[0][0] <= until_s:
            at_s, number = heapq.heappop(self.due)
            self.now_s = max(self.now_s, at_s)
            node = self.nodes[number]
            if not node.alive:
                continue
            begin_s = time.thread_time()
            to = self._deliver(node, node.peers.due(self.now_s))
            node.cpu_s += time.thread_time() - begin_s
            heapq.heappush(self.due, (max(node.peers.next_due_s(), self.now_s + 0.01), number))
            while to:  # loopback has handed it over when sendto returns
                to = [again for target in dict.fromkeys(to) for again in self._receive(target)]
        self.now_s = max(self.now_s, until_s)

    def until(self, wanted: str, limit_s: float, step_s: float) -> float:
        """The time at which every living agent's view has so many nodes missing."""
        waiting = [node for node in self.nodes if node.alive]
        end_s = self.now_s + limit_s
        while waiting and self.now_s < end_s:
            self.run(self.now_s + step_s)
            waiting = [node for node in waiting if not self._knows(node, wanted)]
        if waiting:
            raise SystemExit(f"scale: {len(waiting)} agents do not know {wanted!r}")
        return self.now_s

    def _knows(self, node: Node, missing: str) -> bool:
        view = node.peers.view(self.now_s)
        if missing:
            return view.settled and missing in view.missing
        return view.settled and not view.missing and view.protected == len(self.nodes)

    def costs(self) -> tuple[float, float]:
        """CPU seconds since the last call: of the median node, of the busiest."""
        spent = sorted(node.cpu_s for node in self.nodes)
        for node in self.nodes:
            node.cpu_s = 0.0
        return spent[len(spent) // 2], spent[-1]


def measure(count: int) -> Figures:
    """One job of so many nodes, from its start to the loss of a node."""
    found = Figures(count)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job = Job(count)
    try:
        found.known_s = job.until("", 1000, max(0.25, count / 2000))
        found.messages_head = max(node.received for node in job.nodes) / found.known_s
        median, most = job.costs()
        found.start_cpu_ms, found.head_cpu_ms = median * 1e3, most * 1e3
        steady_s = STEADY_ROUNDS * job.nodes[0].peers.interval_s
        job.run(job.now_s + steady_s)
        median, most = job.costs()
        found.steady_cpu_ppm = median / steady_s * 1e6
        found.steady_head_ppm = most / steady_s * 1e6
        dead = job.nodes[count // 2]
        dead.alive = False
        begin_s = job.now_s
        found.death_s = job.until(dead.name, DEATH_WAIT_S, max(1.0, count / 500)) - begin_s
    finally:
        job.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found.memory_kib = max(grown, 0) / count
    found.list_ms = list_time_ms(count)
    return found


def list_time_ms(count: int) -> float:
    """The start request of a job on every second node: nothing folds."""
    names = [f"n{2 * number}" for number in range(count)]
    envelope = "v=1;mode=on;key=" + "5a" * 32 + ";spares=0;on_missing=warn"
    text = (
        f"job=7\nuid=1\nuser=a\nnodes={hostlist.fold(names)}\nnode=n0\ncluster=c\n"
        f"partition=p\nenvelope={envelope}"
    )
    took = []
    for _ in range(3):
        begin_s = time.process_time()
        JobStart.parse(text)
        took.append(time.process_time() - begin_s)
    return min(took) * 1e3


@dataclass
class Collected:
    """What an epilog's collection takes, by the number of nodes; CPU of this machine."""

    nodes: int
    part_cpu_ms: float  # of one node: its journal becomes its part
    early_look_ms: float  # CPU of one node that looks and finds the last part missing
    merge_cpu_s: float  # of the one that merges
    merge_s: float
    merge_cpu_ms_per_node: float
    merge_peak_mib: float  # resident memory of the process that merges
    late_look_ms: float  # CPU of one node that comes after the merge
    trace_kib_per_node: float


def collection(count: int, rows: int) -> Collected:
    """So many seconds of a job of so many nodes at 1 Hz, from parts to the trace."""
    names = [f"n{number}" for number in range(count)]
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o1777)
        user_dir = collect.ensure_user_dir(Path(work), "bench", os.geteuid())
        begin_s = time.process_time()
        for number, name in enumerate(names):
            _part(user_dir, name, number, count, rows)
        part_s = time.process_time() - begin_s
        early_s = _look(user_dir, [*names, "late"])
        begin_s = time.monotonic()
        used = _merged_by_child(user_dir, names)
        merge_s = time.monotonic() - begin_s
        late_s = _look(user_dir, names)
        size = layout.trace_file(user_dir, 7, 0).stat().st_size
    cpu_s = used.ru_utime + used.ru_stime
    return Collected(
        count, part_s / count * 1e3, early_s * 1e3, cpu_s, merge_s, cpu_s / count * 1e3,
        used.ru_maxrss / 1024, late_s * 1e3, size / count / 1024,
    )  # fmt: skip


def _look(user_dir: Path, names: Sequence[str]) -> float:
    """CPU seconds of a node of the job that has nothing to merge."""
    begin_s = time.process_time()
    collect.merge(user_dir, 7, names, T0, True)
    return time.process_time() - begin_s


def _merged_by_child(user_dir: Path, names: Sequence[str]) -> resource.struct_rusage:
    """The sealer, too, forks for each piece of work."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(collect.merge(user_dir, 7, names, T0, True) is None)
        finally:
            os._exit(status)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"scale: the parts of {len(names)} nodes were not merged")
    return used


def _part(user_dir: Path, name: str, number: int, count: int, seconds: int) -> None:
    rows = dtypes.empty(schema.JOB, seconds)
    rows["time_mono_ns"] = np.arange(seconds) * S
    rows["cpu_ns"] = np.cumsum(np.random.default_rng(number).integers(0, S, seconds))
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES} | {"job": rows}
    given = {"job": 7, "node": name, "nodes": f"n[0-{count - 1}]", "begin_real_ns": T0,
             "end_real_ns": T0 + seconds * S}  # fmt: skip
    part.write_part([Journal({"boot_id": "b"}, 1, tables, None)], given,
                    layout.part_file(user_dir, 7, name, T0))  # fmt: skip


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Of growth over the larger half of the sizes: 1 is linear, 0 is flat."""
    half = max(2, len(sizes) // 2 + 1)
    x, y = np.log(sizes[-half:]), np.log(np.maximum(values[-half:], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def table(rows: Sequence[Figures] | Sequence[Collected]) -> dict[str, float]:
    """Prints it; the exponents by column."""
    data = [asdict(row) for row in rows]
    names = list(data[0])
    print("  ".join(f"{name:>{max(9, len(name))}}" for name in names))
    for row in data:
        print("  ".join(f"{row[name]:>{max(9, len(name))}.4g}" for name in names))
    sizes = [row["nodes"] for row in data]
    grows = {}
    if len(sizes) > 1:
        grows = {name: exponent(sizes, [row[name] for row in data]) for name in names[1:]}
        cells = ["growth", *(f"^{grows[name]:.2f}" for name in names[1:])]
        pairs = zip(names, cells, strict=True)
        print("  ".join(f"{cell:>{max(9, len(name))}}" for name, cell in pairs))
    return grows


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[64, 256, 1000, 4000, 10000])
    parser.add_argument("--parts", type=int, nargs="*", default=[64, 256, 1000, 4000, 10000])
    parser.add_argument("--rows", type=int, default=3600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    most = max(options.nodes, default=0) + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, hard)), hard))
    print(
        f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; seconds are virtual, CPU is real"
    )
    found = []
    for count in options.nodes:
        found.append(measure(count))
        print(f"  {asdict(found[-1])}", file=sys.stderr, flush=True)
    found.sort(key=lambda one: one.nodes)
    grows = table(found) if found else {}
    parts = []
    for count in options.parts:
        parts.append(collection(count, options.rows))
        print(f"  {asdict(parts[-1])}", file=sys.stderr, flush=True)
    if parts:
        print()
        grows |= table(parts)
    if options.json:
        body = {"nodes": [asdict(f) for f in found], "parts": [asdict(p) for p in parts],
                "growth": grows}  # fmt: skip
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
