"""What one agent costs: CPU share and memory at 1, 10 and 100 samples a second.

Runs a real node service with real agents in namespaces of their own (root needed), a job with
three running processes beside it, and prints beside each figure the floor: the same system calls
at the same pace in the same seconds, without an agent around them. On an idle machine a process
that wakes finds its caches cold, and the floor is ten times what the calls cost in a row.

    python -m bench.agent_cost [--seconds 20]
"""

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from bench.needs import need_root
from fabricctl.telemetry import netlink
from fabricctl.telemetry.host import FILES, SELDOM_HZ
from tests.support.nodebox import NodeBox

RATES_HZ = (1, 10, 100)
GOAL_PERCENT = {1: 0.2, 10: 1.0, 100: 1.0}
GOAL_MIB = 48


def cpu_ns(proc: Path) -> int:
    """CPU time of all threads, from the scheduler: exact, where stat counts in 10 ms."""
    files = proc.glob("task/*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files)


def memory_mib(proc: Path) -> tuple[float, float]:
    """Resident, and what is this process's alone (proportional set size)."""
    fields = dict(
        line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:]
    )
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("Rss", "Pss"))  # type: ignore[return-value]


def floor_percent(rate_hz: float, seconds: float, rails: int = 2) -> float:
    """The share of a core that the kernel needs for one agent's reads at that pace."""
    fds = [os.open(f"/proc/{name}", os.O_RDONLY) for name in FILES]
    request = netlink.request(index=1)
    begin_s, begin_ns = time.monotonic(), time.thread_time_ns()
    due_s, samples = begin_s, 0
    seldom = max(1, math.ceil(rate_hz / SELDOM_HZ))
    with netlink.open_socket() as asked:
        while due_s < begin_s + seconds:
            for fd in fds if samples % seldom == 0 else fds[:1]:
                os.pread(fd, 512, 0)
            samples += 1
            asked.send(request * rails)
            for _ in range(rails):
                asked.recv(4096)
            due_s += 1 / rate_hz
            time.sleep(max(0, due_s - time.monotonic()))
    for fd in fds:
        os.close(fd)
    return (time.thread_time_ns() - begin_ns) / (time.monotonic() - begin_s) / 1e7


def measure(box: NodeBox, job: int, rate_hz: float, seconds: float) -> tuple[float, ...]:
    """CPU percent of an agent at a rate and of the floor, its resident and proportional MiB."""
    box.start(job, extra=f";sample_hz={rate_hz:g}")
    pid = box.wait_running(job)
    proc = box.root / f"proc/{pid}"
    time.sleep(6)  # past its beginning, when it looks for steps more often
    begin_s, begin_ns = time.monotonic(), cpu_ns(proc)
    floor = floor_percent(rate_hz, seconds)
    share = (cpu_ns(proc) - begin_ns) / ((time.monotonic() - begin_s) * 1e9)
    resident, proportional = memory_mib(proc)
    box.stop(job)
    return share * 100, floor, resident, proportional


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    need_root()
    met = True
    print(f"{'rate':>7} {'CPU of a core':>14} {'floor':>8} {'ratio':>6} {'goal':>6}  memory")
    with tempfile.TemporaryDirectory() as work, NodeBox(Path(work)) as box:
        box.serve()
        for job, rate_hz in enumerate(RATES_HZ, start=100):
            percent, floor, resident, proportional = measure(box, job, rate_hz, seconds)
            met &= percent <= GOAL_PERCENT[rate_hz] and resident <= GOAL_MIB
            print(
                f"{rate_hz:4} Hz {percent:12.3f} % {floor:6.3f} % {percent / floor:6.1f} "
                f"{GOAL_PERCENT[rate_hz]:4.1f} %  {resident:.1f} MiB resident, "
                f"{proportional:.1f} MiB proportional (goal {GOAL_MIB})"
            )
        service = box.root / f"proc/{box.service_pid()}"
        resident, proportional = memory_mib(service)
        begin_ns = cpu_ns(service)
        time.sleep(10)
        share = (cpu_ns(service) - begin_ns) / 1e8
        print(
            f"node service, idle: {share:.4f} % of a core, {resident:.1f} MiB resident, "
            f"{proportional:.1f} MiB proportional (goal 20)"
        )
    print("goals met" if met else "goals missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
