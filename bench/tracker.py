"""What the tracker costs a call, beside the least that a PMPI profiler does.

A loop of MPI_Send on a stub MPI that returns at once, bare, under libfabrictrack and under
bench/tracker_peer.c (two clock_gettime and a hash update, the core of mpiP and IPM, which no
package registry has); then a ping-pong of two ranks on the real MPI, bare and tracked.

    python -m bench.tracker [--calls 20000000] [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOAL_NS = 20.0


def build(where: Path) -> None:
    sources = ROOT / "tests" / "c" / "track"
    subprocess.run(["make", "-s", "-C", ROOT / "fabricctl/state", f"OUT={where}"], check=True)
    library = ["gcc", "-O2", "-shared", "-fPIC", "-o"]
    subprocess.run([*library, where / "libstubmpi.so", sources / "stub_mpi.c"], check=True)
    subprocess.run([*library, where / "libpeer.so", ROOT / "bench/tracker_peer.c"], check=True)
    program = ["gcc", "-O2", "-o", where / "program", sources / "program.c"]
    subprocess.run([*program, where / "libstubmpi.so", f"-Wl,-rpath,{where}"], check=True)
    mpicc = os.environ.get("MPICC", "mpicc")
    subprocess.run([mpicc, "-O2", "-o", where / "pingpong", ROOT / "bench/pingpong.c"], check=True)


def loop_ns(where: Path, calls: int, preload: Mapping[str, str]) -> float:
    argv = [str(where / "program"), "loop", str(calls)]
    environment = {**preload, "FABRIC_TRACK_DIR": str(where)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def pingpong_us(where: Path, library: Path | None) -> float:
    argv = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    argv += ["-x", f"LD_PRELOAD={library}"] if library else []
    environment = {**os.environ, "FABRIC_TRACK_DIR": str(where)}
    argv.append(str(where / "pingpong"))
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        where = Path(directory)
        build(where)
        kinds = {
            "bare": {},
            "tracker": {"LD_PRELOAD": str(where / "libfabrictrack.so")},
            "peer": {"LD_PRELOAD": str(where / "libpeer.so")},
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        trips: dict[str, list[float]] = {"bare": [], "tracker": []}
        for _ in range(options.rounds):  # by turns: all see the same machine
            for kind, preload in kinds.items():
                found[kind].append(loop_ns(where, options.calls, preload))
            trips["bare"].append(pingpong_us(where, None))
            trips["tracker"].append(pingpong_us(where, where / "libfabrictrack.so"))
    # The least: what else ran on the machine only adds.
    ns = {kind: min(values) for kind, values in found.items()}
    tracker, peer = ns["tracker"] - ns["bare"], ns["peer"] - ns["bare"]
    print(f"bare call                      {ns['bare']:6.1f} ns")
    print(f"tracker, beside the call       {tracker:6.1f} ns   (goal: {GOAL_NS:g} with timing)")
    print(f"PMPI profiler, beside the call {peer:6.1f} ns   {peer / tracker:.1f} times the tracker")
    bare, tracked = (statistics.median(trips[kind]) for kind in ("bare", "tracker"))
    print(f"ping-pong of 8 bytes           {bare:.3f} us, tracked {tracked:.3f} us")
    return 0 if tracker <= GOAL_NS else 1


if __name__ == "__main__":
    sys.exit(main())
