"""Report time and memory on traces of 8, 128 and 1,024 nodes x 8 GPUs x 24 h at 1 Hz.

The traces are made by a generator whose truth is known (cuts of rails, a slow node, a flapping
link) and the reports are held to it. Every source is on: 8 GPUs, two InfiniBand ports, TCP, 8 ranks
under the tracker, the job clock's probes to 8 peers over two rails. Two nodes' tables are made, and
every node has a copy of the rollups of one of them, which is all that a report of that size reads;
samples, which it does not, are the same ones for all (hard links), so that the file fits on a disk.
Beside it: totals and peaks of rails and hosts by h5py and pandas over every sample.

    python -m bench.report [--nodes 8 128 1024] [--hours 24]
"""

import argparse
import itertools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fabricctl.store import dtypes, part, schema
from fabricctl.store.hdf5 import Value
from fabricctl.store.journal_reader import Journal
from fabricctl_analysis.build import renderings, report_of

GOAL_S, GOAL_BYTES, GOAL_HTML = 60.0, 2 << 30, 5_000_000
S = 1_000_000_000
BEGIN_NS = 1_790_000_000 * S
RAILS, GPUS, PEERS = 2, 8, 8
OPS = (b"MPI_Allreduce", b"MPI_Isend", b"MPI_Waitall")
Rows = np.ndarray
Times = NDArray[np.int64]
CUT = (40_000.25, 43.5)  # of rail 0 of every 64th node: at, how long, in seconds


def journal(hours: float, cut: bool) -> Journal:
    """A day of one node: random loads, so that nothing compresses better than life does."""
    random = np.random.default_rng(7 + cut)
    seconds = int(hours * 3600)
    at_ns = np.arange(seconds) * S + S // 10
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
    host = dtypes.empty(schema.HOST, seconds)
    busy = random.integers(0, 64 * S, seconds)
    host["cpu_user_ns"], host["cpu_idle_ns"] = np.cumsum(busy), np.cumsum(64 * S - busy)
    for name in ("nice", "system", "iowait", "irq", "softirq", "steal"):
        host[f"cpu_{name}_ns"] = 0
    host["memory_total_bytes"] = 512 << 30
    host["memory_available_bytes"] = random.integers(100 << 30, 500 << 30, seconds)
    for name in ("cpu_some", "memory_some", "memory_full", "io_some", "io_full"):
        host[f"psi_{name}_us"] = np.cumsum(random.integers(0, 100, seconds))
    job = dtypes.empty(schema.JOB, seconds)
    job["cpu_ns"], job["memory_bytes"] = np.cumsum(busy), random.integers(1, 1 << 40, seconds)
    job["processes"] = 8
    rails = []
    for rail in range(RAILS):
        rows = dtypes.empty(schema.RAIL, seconds)
        rows["rail"], rows["carrier"], rows["carrier_changes"] = rail, 1, 1
        for way in ("rx", "tx"):
            moved = np.cumsum(random.integers(0, 25_000_000_000, seconds))
            rows[f"{way}_bytes"], rows[f"{way}_packets"] = moved, moved // 4096
            rows[f"{way}_errors"] = rows[f"{way}_dropped"] = 0
        if cut and rail == 0 and CUT[0] < seconds:
            down = (at_ns >= CUT[0] * S) & (at_ns < sum(CUT) * S)
            rows["carrier"] = ~down
            rows["carrier_changes"] = 1 + (at_ns >= CUT[0] * S) + (at_ns >= sum(CUT) * S)
        rows["time_mono_ns"] = at_ns
        rails.append(rows)
    host["time_mono_ns"] = job["time_mono_ns"] = at_ns
    tables |= {"host": host, "job": job}
    tables["rail"] = np.sort(np.concatenate(rails), order="time_mono_ns", kind="stable")
    clock = dtypes.empty(schema.CLOCK, max(1, seconds // 4))
    clock["time_mono_ns"] = np.arange(len(clock)) * 4 * S
    clock["time_real_ns"] = clock["time_mono_ns"] + BEGIN_NS
    clock["width_ns"] = 300
    tables["clock"] = clock
    tables |= devices(at_ns, random) | ranks(at_ns, random) | probes(at_ns, random)
    if cut and CUT[0] < seconds:
        events = dtypes.empty(schema.LINK_EVENT, 2)
        events["time_mono_ns"] = [int(CUT[0] * S), int(sum(CUT) * S)]
        events["time_real_ns"] = events["time_mono_ns"] + BEGIN_NS
        events["rail"], events["event"], events["carrier_changes"] = 0, (0, 1), (2, 3)
        tables["link_event"] = events
    return Journal({"boot_id": "b"}, schema.SCHEMA_VERSION, tables, None)


def several(table: schema.Table, keys: dict[str, Sequence[object]], at_ns: Times) -> Rows:
    """Rows of each combination of the keys at each instant, in the order of time."""
    every = list(itertools.product(*keys.values()))
    rows = dtypes.empty(table, len(at_ns) * len(every))
    rows["time_mono_ns"] = np.repeat(at_ns, len(every))
    for name, values in zip(keys, zip(*every, strict=True), strict=True):
        rows[name] = np.tile(np.array(values), len(at_ns))
    return rows


def growing(random: np.random.Generator, at_ns: Times, series: int, most: int) -> Times:
    """Counters of ``series`` things at each instant, one after the other."""
    steps = random.integers(0, most, (len(at_ns), series))
    return np.asarray(np.cumsum(steps, axis=0).ravel(), np.int64)


def devices(at_ns: Times, random: np.random.Generator) -> dict[str, Rows]:
    gpu = several(schema.GPU, {"gpu": range(GPUS)}, at_ns)
    gpu["utilisation_percent"] = random.integers(60, 101, len(gpu))
    gpu["temperature_c"] = random.integers(50, 70, len(gpu))
    gpu["memory_used_bytes"], gpu["memory_total_bytes"] = 60 << 30, 80 << 30
    gpu["sm_clock_mhz"] = random.integers(1500, 1980, len(gpu))
    gpu["power_mw"] = random.integers(300_000, 700_000, len(gpu))
    gpu["energy_mj"] = growing(random, at_ns, GPUS, 700_000)
    for name in ("throttle_reasons", "ecc_corrected", "ecc_uncorrected", "remapped_rows",
                 "pcie_replays", "nvlink_errors"):  # fmt: skip
        gpu[name] = 0
    port = several(schema.RDMA_PORT, {"port": range(RAILS)}, at_ns)
    port["active"] = 1
    for name in ("rx_bytes", "tx_bytes"):
        port[name] = growing(random, at_ns, RAILS, 50_000_000_000)
    for name in ("tx_wait", "symbol_errors", "link_downed", "link_recoveries", "rx_errors"):
        port[name] = 0
    tcp = several(schema.TCP, {}, at_ns)
    tcp["out_segments"] = growing(random, at_ns, 1, 100_000)
    tcp["retransmitted"] = growing(random, at_ns, 1, 3)
    return {"gpu": gpu, "rdma_port": port, "tcp": tcp}


def ranks(at_ns: Times, random: np.random.Generator) -> dict[str, Rows]:
    at_ns = at_ns + S // 50
    called = several(schema.MPI_TIME, {"rank": range(GPUS), "op": OPS}, at_ns)
    series = GPUS * len(OPS)
    called["launch"], called["bytes"], called["most_ns"] = 0, 0, S // 10
    called["calls"] = growing(random, at_ns, series, 200)
    called["time_ns"] = growing(random, at_ns, series, S // 6)
    stands = several(schema.RANK_POSITION, {"rank": range(GPUS)}, at_ns)
    stands["launch"], stands["step"], stands["op"] = 0, 0, OPS[0]
    stands["calls"] = growing(random, at_ns, GPUS, 1000)
    seen = dtypes.empty(schema.RANK, GPUS)
    seen["time_mono_ns"], seen["rank"], seen["launch"] = at_ns[0], range(GPUS), 0
    return {"mpi_time": called, "rank_position": stands, "rank": seen}


def probes(at_ns: Times, random: np.random.Generator) -> dict[str, Rows]:
    keys = {"rail": range(RAILS), "peer": range(1, PEERS + 1), "inbound": (0, 1)}
    delay = several(schema.DELAY, keys, at_ns)
    delay["size_class"] = 0
    middle = random.integers(1500, 4000, len(delay))
    for name, more in (("min_ns", -500), ("p50_ns", 0), ("p99_ns", 900), ("max_ns", 2000)):
        delay[name] = middle + more
    delay["bound_ns"], delay["floor_ns"], delay["count"] = 200, 1200, 10
    sent = 10 * np.arange(1, len(at_ns) + 1)
    delay["sent"] = delay["arrived"] = np.repeat(sent, RAILS * PEERS * 2)
    delay["duplicates"] = delay["reordered"] = 0
    return {"delay": delay}


def make(nodes: int, hours: float, folder: Path) -> Path:
    """The trace; each node's tables are a copy of one of two parts."""
    names = [f"n{nth:04d}" for nth in range(nodes)]
    given: dict[str, Value] = {
        "job": nodes, "user": "alice", "uid": 1000, "cluster": "c", "mode": "on", "spares": 0,
        "nodes": f"n[0000-{nodes - 1:04d}]", "rails": "ib0 ib1", "sample_hz": 1.0,
        "begin_real_ns": BEGIN_NS, "end_real_ns": BEGIN_NS + int(hours * 3600 * S),
    }  # fmt: skip
    parts = []
    for cut in (True, False):
        out = folder / f"part{cut}.h5"
        part.write_part([journal(hours, cut)], {**given, "node": "n0"}, out)
        parts.append(out)
    path = folder / f"job-{nodes}.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        sources = [h5py.File(one) for one in parts]
        for name, value in sources[0].attrs.items():
            file.attrs[name] = value
        sources[0].copy("schema", file)
        firsts: dict[h5py.File, str] = {}
        for nth, name in enumerate(names):
            source = sources[0] if nth % 64 == 0 else sources[1]
            place(source["nodes/n0"], file, name, firsts.setdefault(source, name))
    for out in parts:
        out.unlink()
    return path


def place(node: h5py.Group, file: h5py.File, name: str, first: str) -> None:
    """As node ``name``; samples of which there are rollups are the very ones of ``first``."""
    made = file.create_group(f"nodes/{name}")
    for key, value in node.attrs.items():
        made.attrs[key] = np.bytes_(name) if key == "node" else value
    for table in node:
        if name != first and f"{table}_1min" in node:
            made[table] = file[f"nodes/{first}/{table}"]
        else:
            node.copy(table, made)


def measured(path: Path, form: str) -> tuple[float, float, int, int]:
    """Seconds, of CPU too, peak memory and length of the text, in a process of its own."""
    reader, writer = os.pipe()
    begin_s = time.monotonic()
    child = os.fork()
    if not child:
        text = renderings(path, [form])[form]
        os.write(writer, str(len(text)).encode())
        os._exit(0)
    os.close(writer)
    _, status, used = os.wait4(child, 0)
    took_s = time.monotonic() - begin_s
    length = int(os.read(reader, 32) or b"0")
    os.close(reader)
    if status:
        raise SystemExit(f"{path}: the report failed")
    return took_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, length


def plain_pandas(path: Path) -> float:
    """Totals, means and peaks of each rail and node from every sample, as one would write it."""
    begin_s = time.monotonic()
    with h5py.File(path) as file:
        for node in file["nodes"].values():
            rail = pd.DataFrame(node["rail"][:])
            for _, rows in rail.groupby("rail"):
                rate = rows["rx_bytes"].diff() / rows["time_mono_ns"].diff()
                (rate.max(), rate.mean(), rows["carrier"].min())
            host = pd.DataFrame(node["host"][:])
            (host["memory_available_bytes"].min(), host["cpu_user_ns"].diff().max())
    return time.monotonic() - begin_s


def holds(path: Path, nodes: int, hours: float) -> bool:
    """Whether the report says what the generator did."""
    report = report_of(path)
    cut = {f"n{nth:04d}" for nth in range(0, nodes, 64)} if CUT[0] < hours * 3600 else set()
    down = {rail.node: rail.down_ns for rail in report.rails if rail.link.downs}
    wanted = {node: int(CUT[1] * S) for node in cut}
    return down == wanted and report.coverage > 0.999 and len(report.nodes) == nodes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[8, 128, 1024])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--pandas-up-to", type=int, default=8, help="nodes; 0: not at all")
    given = parser.parse_args()
    import bokeh.plotting  # noqa: F401  loaded before the clock runs, as Python itself is

    met = True
    print(f"{'nodes':>6}{'file':>10}{'text':>9}{'CPU':>8}{'memory':>10}{'html':>9}{'CPU':>8}"
          f"{'memory':>10}{'size':>9}{'truth':>7}{'pandas':>9}{'load':>6}")  # fmt: skip
    for nodes in given.nodes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            path = make(nodes, given.hours, Path(folder))
            text_s, text_cpu_s, text_bytes, _ = measured(path, "text")
            html_s, html_cpu_s, html_bytes, length = measured(path, "html")
            load = os.getloadavg()[0]
            true = holds(path, nodes, given.hours)
            peer = f"{plain_pandas(path):8.1f}s" if nodes <= given.pandas_up_to else "        -"
            print(f"{nodes:6}{path.stat().st_size / 2**30:7.2f}GiB{text_s:8.1f}s{text_cpu_s:7.1f}s"
                  f"{text_bytes / 2**20:7.0f}MiB{html_s:8.1f}s{html_cpu_s:7.1f}s"
                  f"{html_bytes / 2**20:7.0f}MiB{length / 1e6:7.1f}MB{true!s:>7}{peer}{load:6.1f}",
                  flush=True)  # fmt: skip
            met &= true and max(text_s, html_s) < GOAL_S and length < GOAL_HTML
            met &= max(text_bytes, html_bytes) < GOAL_BYTES
    print(
        f"goal: each under {GOAL_S:.0f} s, 2 GiB and a page of 5 MB: {'met' if met else 'missed'}"
    )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"(the generator and pandas took {own:.0f} MiB)")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
