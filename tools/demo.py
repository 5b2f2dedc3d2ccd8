"""``make demo``: a protected MPI job on a real Slurm, a cable pulled and put back, the report.

Everything it does is a command that it prints first, so that each can be repeated by hand.
Ends with 0 only when the job finished, its trace holds every node, and the link events of the
report stand within 10 ms of the lab's own fault log.
"""

import json
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FABRICCTL = str(ROOT / ".venv" / "bin" / "fabricctl")
LAB = ("--name", "demo")
OUT = ROOT / "demo"
NODE, RAIL, CUT_S, RUN_S = "n2", "r0", 3.0, 15.0


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def call(*args: str, show: bool = True) -> str:
    """Runs ``fabricctl ARGS``; its output, shown too. A failure ends the demo."""
    shown = shlex.join(["fabricctl", *args])
    print(f"$ {shown}", flush=True)
    done = subprocess.run(
        [FABRICCTL, *args], text=True, stdout=subprocess.PIPE, timeout=120, check=False
    )
    if show:
        print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"demo: `{shown}` ended with status {done.returncode}")
    return done.stdout


def as_alice(*argv: str, show: bool = True) -> str:
    return call("lab", "exec", *LAB, "-u", "alice", "ctl", "--", *argv, show=show)


def submit() -> str:
    """The job's id."""
    script = (
        "#!/bin/bash\n"
        # Four ranks share this machine's cores: do not spin while waiting.
        "export OMPI_MCA_mpi_yield_when_idle=1\n"
        f"srun --mpi=pmix {ROOT}/.venv/bin/python {ROOT}/examples/allreduce.py --seconds {RUN_S}\n"
    )
    wrap = f"cat > job.sh <<'END'\n{script}END\nsbatch --parsable --fabric-resilience -N4 " + (
        "--ntasks-per-node=1 -o job-%j.out job.sh"
    )
    return as_alice("bash", "-c", wrap).strip()


def wait_for(job: str, states: set[str], seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = subprocess.run(
            [FABRICCTL, "lab", "exec", *LAB, "ctl", "--", "scontrol", "-o", "show", "job", job],
            text=True, capture_output=True, timeout=30, check=False,
        ).stdout  # fmt: skip
        state = next((w[9:] for w in text.split() if w.startswith("JobState=")), "UNKNOWN")
        if state in states:
            return state
        time.sleep(0.2)
    raise SystemExit(f"demo: job {job} did not reach {', '.join(sorted(states))} in {seconds} s")


def compare(job: str) -> bool:
    """Holds the trace's link events against the lab's fault log."""
    log = call("lab", "log", *LAB, "--json", show=False)
    truth = [json.loads(line) for line in log.splitlines()]
    events = json.loads(as_alice(FABRICCTL, "report", job, "--json", show=False))["link_events"]
    good = True
    for what, name in (("fault", "carrier_down"), ("heal", "carrier_up")):
        true_ns = next(e["real_ns"] for e in truth if (e["event"], e["kind"]) == (what, "cut"))
        seen = [real_ns(e["at"]) for e in events if (e["node"], e["event"]) == (NODE, name)]
        if not seen:
            print(f"{name}: not in the report")
            good = False
            continue
        late_ms = (min(seen, key=lambda at: abs(at - true_ns)) - true_ns) / 1e6
        print(f"{name}: in the report {late_ms:+.2f} ms from the lab's own log")
        good = good and abs(late_ms) < 10
    return good


def wait_for_trace(job: str) -> None:
    """The nodes hand their traces in after the job's end, which waits for none of it."""
    path = f"/shared/traces/alice/job-{job}.h5"
    probe = [FABRICCTL, "lab", "exec", *LAB, "ctl", "--", "test", "-e", path]
    for _ in range(100):
        if subprocess.run(probe, timeout=30, check=False).returncode == 0:
            return
        time.sleep(0.2)
    raise SystemExit(f"demo: {path} did not appear")


def real_ns(stamp: str) -> int:
    """An ISO time with nine decimals, in ns since the epoch."""
    seconds, fraction = stamp.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(seconds + "+00:00").timestamp()) * 10**9 + int(fraction)


def main() -> int:
    OUT.mkdir(exist_ok=True)
    say("A real Slurm of five nodes and two rails, on this machine")
    call("lab", "up", *LAB)
    try:
        say("A job over four nodes, protected by one flag")
        job = submit()
        wait_for(job, {"RUNNING"}, 30)
        time.sleep(4)
        say(f"Pulling the cable of {NODE}, rail {RAIL}, for {CUT_S:g} s")
        call("lab", "fault", *LAB, "cut", NODE, RAIL)
        time.sleep(CUT_S)
        call("lab", "heal", *LAB, "cut", NODE, RAIL)
        state = wait_for(job, {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"}, RUN_S + 60)
        say(f"The job is {state}; its own output:")
        as_alice("cat", f"job-{job}.out")
        wait_for_trace(job)
        say("The report")
        as_alice(FABRICCTL, "report", job, "--html", "report.html")
        html = as_alice("cat", "report.html", show=False)
        (OUT / "report.html").write_text(html)
        good = compare(job) and state == "COMPLETED"
        print(f"\nThe same with plots: {OUT / 'report.html'}")
    finally:
        say("Taking the lab down")
        call("lab", "down", *LAB)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
