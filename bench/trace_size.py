"""Bytes per sample: our traces beside those of Slurm's own profiling, of the same jobs.

Brings up a lab of four nodes whose Slurm also writes acct_gather_profile/hdf5 files (tasks and
network), and runs two jobs side by side that compute and send at random: one task a node, and four
tasks a node. A sample is all that one node records at one moment. Needs root and Debian's
slurm-wlm-hdf5-plugin.

    python -m bench.trace_size [--seconds 300]
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py

from bench.needs import lack
from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

GOAL = 0.2  # of Slurm's bytes
SLURM_CONF = {
    "AcctGatherProfileType": "acct_gather_profile/hdf5",
    "AcctGatherInterconnectType": "acct_gather_interconnect/sysfs",
    "JobAcctGatherType": "jobacct_gather/linux",
    "JobAcctGatherFrequency": "task=1,network=1",
}
GATHER_CONF = """\
ProfileHDF5Dir=/shared/profile
ProfileHDF5Default=All
SysfsInterfaces=r0,r1
"""
# Every task computes and sends at its own random pace: counters that stand still, or move evenly,
# would compress to nothing.
LOAD = """
import os, random, socket, sys, time
me, peers = os.uname().nodename, sys.argv[2].split(",")
peer = peers[peers.index(me) ^ 1]
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    stop = time.monotonic() + random.random() * 0.05
    while time.monotonic() < stop:
        sum(range(2000))
    for _ in range(random.randrange(60)):
        out.sendto(bytes(random.randrange(64, 1400)), (peer + random.choice(("-r0", "-r1")), 9))
    time.sleep(random.random() * 0.4)
"""


@dataclass
class Size:
    """What one side wrote for one job, all nodes together."""

    file_bytes: int = 0  # the files as they are
    data_bytes: int = 0  # the series alone, without what a file costs once
    samples: int = 0
    values: int = 0


def profile_files(files: Iterable[Path]) -> Size:
    """Of Slurm's: one file a node and step."""
    size = Size()
    for path in files:
        with h5py.File(path) as file:
            series: list[h5py.Dataset] = []
            file.visititems(
                lambda _, item, to=series: (
                    to.append(item) if isinstance(item, h5py.Dataset) else None
                )
            )
            add(size, series, max(len(item) for item in series))
        size.file_bytes += path.stat().st_size
    return size


def trace_file(path: Path) -> Size:
    """Of ours: one file a job."""
    size = Size(file_bytes=path.stat().st_size)
    with h5py.File(path) as file:
        for node in file["nodes"].values():
            add(size, list(node.values()), len(node["host"]))
    return size


def add(size: Size, series: list[h5py.Dataset], samples: int) -> None:
    for item in series:
        size.data_bytes += item.id.get_storage_size()
        size.values += len(item) * len(item.dtype.names)
    size.samples += samples


def bring_up(lab: Lab) -> None:
    """With profiling. slurmd reads acct_gather.conf when it starts, and the lab has no place for
    it: it is put there between the making of the nodes' /etc and the start of slurmd."""
    lab.down()

    def put() -> None:
        while not (lab.paths.etc / ".copied").exists():
            time.sleep(0.001)
        (lab.paths.etc / "slurm").mkdir(exist_ok=True)
        (lab.paths.etc / "slurm" / "acct_gather.conf").write_text(GATHER_CONF)

    threading.Thread(target=put, daemon=True).start()
    lab.up()
    directory = lab.paths.shared / "profile"
    directory.mkdir()
    directory.chmod(0o1777)
    (lab.paths.shared / "load.py").write_text(LOAD)


def run_jobs(lab: Lab, seconds: int) -> dict[int, int]:
    """Tasks a node by job id."""
    jobs = {}
    for tasks, nodes in ((1, "n1,n2"), (4, "n3,n4")):
        load = f"{sys.executable} /shared/load.py {seconds} {nodes}"
        script = f"srun --profile=all --acctg-freq=task=1,network=1 -n{2 * tasks} {load}"
        argv = ["sbatch", "--parsable", "--profile=all", "--acctg-freq=task=1,network=1"]
        argv += ["--fabric-resilience=observe", "-pall", f"-w{nodes}", "-N2", f"-n{2 * tasks}"]
        argv += ["-o/dev/null", f"--wrap={script}"]
        jobs[int(lab.run(argv).stdout)] = tasks
    return jobs


def wait_for(lab: Lab, jobs: Iterable[int], seconds: int) -> list[Path]:
    traces = [lab.paths.shared / "traces" / "alice" / f"job-{job}.h5" for job in jobs]
    end_s = time.monotonic() + seconds + 90
    while not all(path.exists() for path in traces):
        if time.monotonic() > end_s:
            raise SystemExit("the jobs did not end, or left no trace")
        time.sleep(1)
    time.sleep(2)
    return traces


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    seconds = parser.parse_args().seconds
    if not any(Path("/usr/lib").glob("*/slurm*/acct_gather_profile_hdf5.so")):
        lack("Slurm's hdf5 profiling is missing: apt-get install slurm-wlm-hdf5-plugin")
    lab = Lab(
        LabSpec(name=os.environ.get("FABRICCTL_LAB", "bench-trace-size"), nodes=4, conf=SLURM_CONF)
    )
    try:
        bring_up(lab)
        jobs = run_jobs(lab, seconds)
        traces = wait_for(lab, jobs, seconds)
        met = [
            compare(lab, job, tasks, trace)
            for (job, tasks), trace in zip(jobs.items(), traces, strict=True)
        ]
    finally:
        lab.down()
    return 0 if all(met) else 1


def compare(lab: Lab, job: int, tasks: int, trace: Path) -> bool:
    """Prints one job's figures; whether the goal was met."""
    steps = list((lab.paths.shared / "profile" / "alice").glob(f"{job}_0_*.h5"))
    slurm, ours = profile_files(steps), trace_file(trace)
    print(f"\n{tasks} task(s) a node, {slurm.samples} samples of Slurm's, {ours.samples} of ours")
    print(f"{'':28}{'Slurm':>10}{'ours':>10}{'ratio':>8}")
    rows = (
        ("file bytes a sample", slurm.file_bytes / slurm.samples, ours.file_bytes / ours.samples),
        ("data bytes a sample", slurm.data_bytes / slurm.samples, ours.data_bytes / ours.samples),
        ("values a sample", slurm.values / slurm.samples, ours.values / ours.samples),
        ("data bytes a value", slurm.data_bytes / slurm.values, ours.data_bytes / ours.values),
    )
    for name, theirs, own in rows:
        print(f"{name:28}{theirs:10.1f}{own:10.1f}{own / theirs:8.2f}")
    ratio = (ours.data_bytes / ours.values) / (slurm.data_bytes / slurm.values)
    print(f"goal: {GOAL} of Slurm's bytes for each value: {'met' if ratio <= GOAL else 'missed'}")
    return ratio <= GOAL


if __name__ == "__main__":
    sys.exit(main())
