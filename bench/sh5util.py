"""A report of ours beside Slurm's own tool: sh5util, then pandas, on the same number of samples.

Slurm's node files are written as its acct_gather_profile/hdf5 plugin writes them (as files of a
real job of Slurm 22.05 were: a table a task and one of the network, chunks of ten rows,
deflated), of eight tasks a node at 1 Hz; ours as in bench.report, with every source on. sh5util
merges the node files (-j) and extracts the tasks' totals (-E), as its manual page has it, and
pandas sums them up; ours is the report in text. Both read every node of the job. Needs Debian's
slurm-client.

    python -m bench.sh5util [--nodes 8] [--hours 1 6 24]
"""

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from bench.needs import lack
from bench.report import make, measured

JOB, TASKS = 7, 8
_INTEGERS = ("ElapsedTime", "EpochTime", "CPUFrequency", "RSS", "VMSize", "Pages")
TASK = np.dtype([(name, "<u8" if name in _INTEGERS else "<f8") for name in (
    "ElapsedTime", "EpochTime", "CPUFrequency", "CPUTime", "CPUUtilization", "RSS", "VMSize",
    "Pages", "ReadMB", "WriteMB")])  # fmt: skip
NETWORK = np.dtype([("ElapsedTime", "<u8"), ("EpochTime", "<u8"), ("PacketsIn", "<u8"),
                    ("PacketsOut", "<u8"), ("InMB", "<f8"), ("OutMB", "<f8")])  # fmt: skip
CONF = """\
ClusterName=bench
SlurmctldHost=localhost
AcctGatherProfileType=acct_gather_profile/hdf5
NodeName=n[0-9] CPUs=1
PartitionName=p Nodes=ALL
"""


def rows(of: np.dtype, seconds: int, random: np.random.Generator) -> np.ndarray:
    made = np.zeros(seconds, of)
    made["ElapsedTime"] = np.arange(seconds)
    made["EpochTime"] = 1_790_000_000 + made["ElapsedTime"]
    for name in of.names[2:]:
        made[name] = random.integers(0, 1 << 30, seconds)
    return made


def make_profile(nodes: int, hours: float, folder: Path) -> None:
    """One file a node, below a directory of the user as Slurm has it."""
    random, seconds = np.random.default_rng(3), int(hours * 3600)
    tables = {f"Tasks/{task}": rows(TASK, seconds, random) for task in range(TASKS)}
    tables["Network"] = rows(NETWORK, seconds, random)
    (folder / "root").mkdir()
    first = folder / "root" / f"{JOB}_0_n0.h5"
    for nth in range(nodes):
        path = folder / "root" / f"{JOB}_0_n{nth}.h5"
        if nth:
            shutil.copy(first, path)
        with h5py.File(path, "r+" if nth else "w") as file:
            if nth:
                file.move("n0", f"n{nth}")
            node = file.require_group(f"n{nth}")
            words = {"Node Name": f"n{nth}", "Start Time": "Sat Nov 21 23:29:33 2026"}
            for name, text in words.items():
                node.attrs[name] = np.array([text.encode()])
            numbers = {"CPUs per Task": 1, "Node Index": nth, "Number of Tasks": TASKS}
            for name, number in numbers.items():
                node.attrs[name] = np.array([number], np.int32)
            for name, table in tables.items() if not nth else ():
                node.create_dataset(name, data=table, chunks=(10,), maxshape=(None,),
                                    compression="gzip", compression_opts=0)  # fmt: skip
    (folder / "slurm.conf").write_text(CONF)
    (folder / "acct_gather.conf").write_text(f"ProfileHDF5Dir={folder}\n")


def by_sh5util(folder: Path) -> tuple[float, float]:
    """Seconds, and of CPU, until the job's totals stand."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    begin_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    merged, out = folder / "job.h5", folder / "tasks.csv"
    steps = (["-j", str(JOB), "-p", str(folder), "-u", "root", "-S", "-o", str(merged)],
             ["-E", "-j", str(JOB), "-i", str(merged), "-s", "Tasks", "-o", str(out)])  # fmt: skip
    for words in steps:
        subprocess.run(["sh5util", *words], env=environment, check=True, capture_output=True)
    found = pd.read_csv(out)
    found.groupby("Node")[["Max_RSS", "Sum_ReadMB", "Avg_CPUUtilization"]].agg(["max", "sum"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - begin_s, cpu_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--hours", type=float, nargs="*", default=[1.0, 6.0, 24.0])
    given = parser.parse_args()
    if not shutil.which("sh5util"):
        lack("sh5util is missing: apt-get install slurm-client")
    import bokeh.plotting  # noqa: F401  as in bench.report

    print(f"{'hours':>6}{'sh5util+pandas':>16}{'CPU':>8}{'ours':>8}{'CPU':>8}{'CPU ratio':>11}")
    worst = 0.0
    for hours in given.hours:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            make_profile(given.nodes, hours, Path(folder))
            wall_s, cpu_s = by_sh5util(Path(folder))
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            path = make(given.nodes, hours, Path(folder))
            ours_s, ours_cpu_s, *_ = measured(path, "text")
        worst = ours_cpu_s / cpu_s
        print(f"{hours:6g}{wall_s:14.2f} s{cpu_s:6.2f} s{ours_s:6.2f} s{ours_cpu_s:6.2f} s"
              f"{worst:11.3f}", flush=True)  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f}")
    return int(worst > 1)


if __name__ == "__main__":
    raise SystemExit(main())
