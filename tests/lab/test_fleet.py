"""What administrators use, against a real Slurm with its accounting."""

import csv
import io
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from tests.support.labname import lab_name

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        shutil.which("mariadbd") is None or shutil.which("slurmdbd") is None,
        reason="apt-get install mariadb-server-core mariadb-client-core slurmdbd",
    ),
]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Lab]:
    lab = Lab(LabSpec(name=lab_name("fleet"), nodes=8, accounting=True))
    lab.down()
    with lab:
        yield lab


@pytest.fixture(autouse=True)
def _whole(fleet: Lab) -> None:
    """Every test, and every second try of one, finds nodes that take jobs and nothing of others."""
    fleet.heal_all()
    left = "rm -rf /var/lib/fabricctl/fleet/* /shared/done-*; squeue -h -o %A | xargs -r scancel"
    fleet.exec("ctl", ["sh", "-c", left])
    fleet.exec("n5", ["ip", "link", "set", "r0", "mtu", "1500"])
    fleet.up()
    # A node that was resumed does not respond until slurmctld has heard of it.
    until(lambda: not ask(fleet, "status")["findings"], "a node is out")


def until(what: Callable[[], Any], why: str, wait_s: float = 60) -> Any:
    deadline = time.monotonic() + wait_s
    while not (found := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.3)
    return found


def ask(lab: Lab, *words: str, user: str = "root") -> Any:
    done = lab.exec("ctl", ["fabricctl", *words, "--json"], user=user, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def submit(lab: Lab, script: str, *options: str, user: str = "alice") -> int:
    argv = ["sbatch", "--parsable", *options, "--wrap", script]
    return int(lab.run(argv, user=user).stdout)


def ended(lab: Lab, *jobs: int) -> bool:
    line = ["squeue", "-h", "-t", "PD,R,CG,CF", "-o", "%A"]
    return not {str(job) for job in jobs} & set(lab.exec("ctl", line).stdout.split())


def test_usage_equals_sacct_and_credits_what_the_fault_log_says(fleet: Lab) -> None:
    begin_s = int(time.time())
    wide = submit(fleet, "srun sleep 6", "--fabric-resilience", "-N3", "-w", "n[1-3]")
    jobs = [wide, submit(fleet, "sleep 2", "-N2", "-n8", user="bob"),
            submit(fleet, "exit 3", user="bob"), submit(fleet, "sleep 1", "-a", "0-2")]  # fmt: skip
    until(lambda: f'"{wide}"' and fleet.run(["squeue", "-h", "-s"]).stdout.count(f"{wide}.0"),
          "the step never began")  # fmt: skip
    down = fleet.fault("cut", "n2", "r1")
    time.sleep(1.5)  # how long the cable is out is what is measured
    up = fleet.heal("cut", "n2", "r1")
    until(lambda: ended(fleet, *jobs), "jobs do not end")
    trace = fleet.paths.shared / "traces" / "alice" / f"job-{wide}.h5"
    until(trace.exists, "no trace")

    def accounted() -> list[list[str]]:
        # From the same moment whenever it is asked: slurmdbd may know a job seconds late.
        since = f"now-{int(time.time()) - begin_s}"
        shown = ["sacct", "-a", "-X", "-D", "-T", "-n", "-P", "-S", since,
                 "-o", "jobidraw,user,elapsedraw,nnodes,alloccpus,state"]  # fmt: skip
        rows = [line.split("|") for line in fleet.exec("ctl", shown).stdout.splitlines()]
        return (
            rows
            if len(rows) == 6 and all(row[5] in ("COMPLETED", "FAILED") for row in rows)
            else []
        )

    rows = until(accounted, "sacct lacks jobs")
    said = ask(
        fleet, "usage", "--from", time.strftime("%FT%TZ", time.gmtime(begin_s)), "--by", "user"
    )
    for group in said["groups"]:
        mine = [row for row in rows if row[1] == group["user"]]
        node_s = sum(int(row[2]) * int(row[3]) for row in mine)
        cpu_s = sum(int(row[2]) * int(row[4]) for row in mine)
        assert group["node_hours"] * 3600 == pytest.approx(node_s, rel=1e-3, abs=0.01)
        assert group["cpu_hours"] * 3600 == pytest.approx(cpu_s, rel=1e-3, abs=0.01)
        assert group["attempts"] == len(mine)
    assert {group["user"] for group in said["groups"]} == {"alice", "bob"}
    truth_s = (up.real_ns - down.real_ns) / 1e9
    lost_s = said["total"]["lost_link_down_node_hours"] * 3600 / 3
    assert lost_s == pytest.approx(truth_s, abs=1.0)
    table = fleet.exec("ctl", ["fabricctl", "usage", "--by", "job", "--from", "1d", "--csv"]).stdout
    assert {int(row["job"]) for row in csv.DictReader(io.StringIO(table))} >= set(jobs)


def test_status_and_a_jobs_events_say_what_was_done_to_them(fleet: Lab) -> None:
    fleet.exec("ctl", ["scontrol", "update", "NodeName=n8", "State=DRAIN", "Reason=broken fan"])
    try:
        said = ask(fleet, "status", user="bob")
    finally:
        fleet.exec("ctl", ["scontrol", "update", "NodeName=n8", "State=RESUME"])
    assert (said["cluster"], said["worst"]) == (fleet.name, "warning")
    assert [(one["kind"], one["nodes"]) for one in said["findings"]] == [("node_drained", ["n8"])]
    job = submit(fleet, "srun sleep 3", "--fabric-resilience", "-N2")
    until(lambda: fleet.run(["squeue", "-h", "-s"]).stdout.count(f"{job}.0"), "no step")
    node = ask(fleet, "job", "show", str(job), user="alice")["job"]["nodes"][0]
    fleet.fault("cut", node, "r0")
    fleet.heal("cut", node, "r0")
    trace = fleet.paths.shared / "traces" / "alice" / f"job-{job}.h5"
    until(trace.exists, "no trace")
    argv = ["fabricctl", "job", "events", str(job), "--kind", "link", "--json"]
    lines = fleet.run(argv).stdout.splitlines()
    assert {(e["node"], e["rail"]) for e in map(json.loads, lines)} == {(node, 0)}
    assert fleet.run(["fabricctl", "job", "show", str(job)], user="bob").returncode == 0


def sampled(lab: Lab, stop: threading.Event, seen: list[int]) -> None:
    """How many nodes are drained or down, every 100 ms."""
    line = ["sinfo", "-h", "-N", "-p", "all", "-o", "%N %t"]
    while not stop.wait(0.1):
        states = dict(row.split() for row in lab.exec("ctl", line).stdout.splitlines())
        out = [name for name, word in states.items() if word.startswith(("drain", "drng", "down"))]
        seen.append(len(out))


def maintain(lab: Lab, name: str, *more: str) -> subprocess.Popen[str]:
    words = ["fabricctl", "maintenance", "start", name, "--poll", "0.5", *more]
    return subprocess.Popen(
        lab.exec_argv("ctl", words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_maintenance_keeps_its_budget_through_kills_and_loses_no_job(fleet: Lab) -> None:
    """Eight nodes, two out at once, jobs on them, the controller killed again and again."""
    jobs = [submit(fleet, "sleep 5", "-p", "all", "-n1") for _ in range(4)]
    jobs += [submit(fleet, "srun sleep 3", "-p", "all", "-N3")]
    until(lambda: len(fleet.run(["squeue", "-h", "-t", "R"]).stdout.splitlines()) >= 4, "no job")
    verify = "sh -c 'test -e /shared/done-{node}'"
    words = ["maintenance", "plan", "rolling", "--nodes", "n[1-8]", "--budget", "25%",
             "--verify", verify,
             "--", "sh", "-c", "sleep 0.5; echo x >> /shared/done-{node}"]  # fmt: skip
    fleet.exec("ctl", ["fabricctl", *words])
    stop, seen = threading.Event(), list[int]()
    sampler = threading.Thread(target=sampled, args=(fleet, stop, seen))
    sampler.start()
    try:
        kills = 0
        deadline = time.monotonic() + 120
        while True:
            controller = maintain(fleet, "rolling")
            try:
                output, _ = controller.communicate(timeout=2.2 if kills < 4 else 100)
                break
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline
                fleet.exec("ctl", ["pkill", "-9", "-f", "maintenance start rolling"], check=False)
                controller.communicate()
                kills += 1
    finally:
        stop.set()
        sampler.join()
    assert controller.returncode == 0, output
    assert kills >= 1, output
    assert max(seen) <= 2
    done = {path.name: path.read_text() for path in fleet.paths.shared.glob("done-*")}
    assert done == {f"done-n{number}": "x\n" for number in range(1, 9)}
    until(lambda: ended(fleet, *jobs), "jobs do not end")
    show = ["sacct", "-a", "-X", "-n", "-P", "-D", "-j", ",".join(map(str, jobs)), "-o", "state"]
    until(lambda: fleet.exec("ctl", show).stdout.split() == ["COMPLETED"] * len(jobs),
          "a job was lost")  # fmt: skip
    until(lambda: not ask(fleet, "status")["findings"], "a node is out")


def test_maintenance_moves_a_run_to_its_spare(fleet: Lab) -> None:
    """A rank's node is drained: the run goes on with the spare, and ends as the unbroken one."""
    root = Path(__file__).parents[2]
    steps = f"{root}/.venv/bin/python {root}/examples/stencil.py --steps 300 --every 5 --cells 4096"
    out = fleet.paths.shared / "home" / "alice"

    def run(name: str, pause_s: float) -> int:
        script = "export OMPI_MCA_mpi_yield_when_idle=1; fabricctl run --spares 1 "
        options = ("--fabric-resilience", "-p", "all", "-wn1,n2,n3", "-N3", "-n3", f"-o{name}.out")
        return submit(fleet, f"{script}{steps} --pause {pause_s}", *options)

    def told(name: str) -> str:
        path = out / f"{name}.out"
        return path.read_text() if path.exists() else ""

    moved = run("moved", 0.03)
    until(lambda: "first step done" in told("moved"), "the run does not begin")
    words = ["maintenance", "plan", "moving", "--nodes", "n2", "--budget", "1", "--migrate",
             "--", "true"]  # fmt: skip
    fleet.exec("ctl", ["fabricctl", *words])
    output, _ = maintain(fleet, "moving").communicate(timeout=60)
    assert ask(fleet, "maintenance", "status", "moving")["nodes"]["n2"]["state"] == "done", output
    assert not ended(fleet, moved), "the node was free only when the job was over"
    whole = run("whole", 0.0)
    until(lambda: ended(fleet, moved, whole), "the runs do not end")
    rings = [re.findall(r"ring ([0-9a-f]{16})", told(name)) for name in ("moved", "whole")]
    assert rings[0] and rings[0][-1] == rings[1][-1], told("moved")


def test_maintenance_stops_at_a_failure_and_touches_no_drain_of_others(fleet: Lab) -> None:
    fleet.exec("ctl", ["scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=broken fan"])
    words = ["maintenance", "plan", "failing", "--nodes", "n[1-4]", "--budget", "2",
             "--", "sh", "-c", "test {node} != n2 || { echo no firmware; exit 4; }"]  # fmt: skip
    fleet.exec("ctl", ["fabricctl", *words])
    output, _ = maintain(fleet, "failing").communicate(timeout=60)
    found = ask(fleet, "maintenance", "status", "failing")
    assert found["state"] == "failed" and found["nodes"]["n2"]["state"] == "failed", output
    assert {node: one["state"] for node, one in found["nodes"].items() if node != "n2"} == {
        "n1": "waiting", "n3": "waiting", "n4": "waiting",
    }  # fmt: skip
    reasons = {n["nodes"][0]: n["text"] for n in ask(fleet, "status")["findings"]}
    assert "broken fan (root)" in reasons["n1"]
    assert (
        "fabric: maintenance failing: failed: its command failed (status 4: no firmware)"
        in (reasons["n2"])
    )
    fleet.exec("ctl", ["fabricctl", "maintenance", "abort", "failing"])
    assert set(reasons) == {n["nodes"][0] for n in ask(fleet, "status")["findings"]}
    fleet.exec("ctl", ["scontrol", "update", "NodeName=n1,n2", "State=RESUME"])


def test_the_inventory_finds_a_pulled_cable_and_another_mtu(fleet: Lab) -> None:
    def invent(*words: str) -> subprocess.CompletedProcess[str]:
        return fleet.exec("ctl", ["fabricctl", "inventory", *words], check=False)

    assert invent("discover").returncode == 0
    assert invent("accept", "n[1-8]", "--key", "nic.*").returncode == 0
    assert invent("diff").returncode == 0
    fleet.fault("cut", "n2", "r1")
    fleet.exec("n5", ["ip", "link", "set", "r0", "mtu", "1400"])
    fleet.exec("ctl", ["scontrol", "update", "NodeName=n8", "State=DRAIN", "Reason=broken fan"])
    done = invent("discover")
    assert done.returncode == 1 and "n8: not asked: is drained" in done.stderr
    found = {
        (d["node"], d["key"]): d["found"] for d in ask(fleet, "inventory", "diff")["deviations"]
    }
    assert found == {
        ("n2", "nic.r1.link"): "down",
        ("n2", "nic.r1.speed_mbit"): None,
        ("n5", "nic.r0.mtu"): "1400",
    }
    fleet.heal_all()
    fleet.exec("n5", ["ip", "link", "set", "r0", "mtu", "1500"])
    fleet.exec("ctl", ["scontrol", "update", "NodeName=n8", "State=RESUME"])
    # A node that was resumed does not respond until slurmctld has heard of it.
    until(lambda: not ask(fleet, "status")["findings"], "n8 does not come back")
    assert invent("discover").returncode == 0
    assert invent("diff").stdout == "nothing differs\n"


def test_events_are_followed(fleet: Lab) -> None:
    argv = ["fabricctl", "events", "--from", "now", "--follow", "--poll", "0.3", "--json"]
    follower = subprocess.Popen(
        fleet.exec_argv("ctl", argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert follower.stdout is not None
    seen: list[str] = []

    def read() -> None:
        for line in follower.stdout or ():
            seen.append(str(json.loads(line)["text"]))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        # Until the follower has looked for the first time nothing is a change to it.
        def drained() -> bool:
            for state in ("DRAIN", "RESUME"):
                line = ["scontrol", "update", "NodeName=n7", f"State={state}", "Reason=a test"]
                fleet.exec("ctl", line, check=False)
                time.sleep(0.5)
            return any(text == "n7 takes jobs again" for text in seen)

        until(drained, "no event of the node")
        job = submit(fleet, "sleep 1", "-N2")
        until(lambda: any(text == f"job {job} of alice ended: completed" for text in seen),
              "no event of the job")  # fmt: skip
    finally:
        follower.terminate()
        follower.wait(20)
        reader.join(20)
        follower.stdout.close()
    assert any(text.startswith(f"job {job} of alice began on n[") for text in seen)


HEAD = {"FABRICCTL_HEAD_ADDRESS": "ctl", "FABRICCTL_HEAD_KEY_FILE": "/tmp/head.key",
        "FABRICCTL_HEAD_SOCKET": "/tmp/fabricd/query", "FABRICCTL_HEAD_INTERVAL_S": "0.5",
        "FABRICCTL_HEAD_SLURM_S": "1"}  # fmt: skip


@pytest.fixture
def fabricd(fleet: Lab) -> Iterator[Callable[..., str]]:
    """fabricd on the controller, three nodes that report to it; asks it as a command there."""
    new = fleet.exec("ctl", ["fabricctl", "head", "key"]).stdout
    keep = ["sh", "-c", "umask 077; cat > /tmp/head.key; chown fabric /tmp/head.key"]
    running = []

    def command(*words: str, user: str = "root") -> str:
        argv = ["fabricctl", *words]
        return fleet.exec("ctl", argv, user=user, environment=HEAD, check=False).stdout

    try:
        for name in ("ctl", "n1", "n2", "n3"):
            fleet.exec(name, keep, input=new)
            argv = ["fabricctl", *(["head", "serve"] if name == "ctl" else ["node", "push"])]
            line = fleet.exec_argv(name, argv, user="fabric", environment=HEAD)
            running.append(subprocess.Popen(line, stdin=subprocess.DEVNULL))
        yield command
    finally:
        for each in running:
            each.kill()
            each.wait()


def test_fabricd_hears_nodes_and_top_place_and_health_use_it(
    fleet: Lab, fabricd: Callable[..., str]
) -> None:
    def known() -> Any:
        said = json.loads(fabricd("head", "ask", "snapshot") or "{}")
        return (
            said if said.get("reports", {}).get("fresh") == 3 and said["cluster"] != "?" else None
        )

    job = submit(fleet, "sleep 60", "-N2", "-w", "n[1-2]", "-J", "hers")
    until(known, "fabricd does not hear three nodes")
    fleet.fault("cut", "n2", "r1")

    def links() -> list[list[str]]:
        return [line.split()[:4] for line in
                fabricd("top", "--once", "--view", "links").splitlines()]  # fmt: skip

    until(lambda: ["n2", "r1", "no", "carrier"] in links(), "top does not show the cut")
    assert ["n1", "r1", "up"] in [line[:3] for line in links()]
    # Jobs are their user's; what is wrong with a rail is everybody's.
    until(lambda: " hers " in fabricd("top", "--once", user="alice"), "alice's job is not shown")
    assert " hers " not in fabricd("top", "--once", user="bob")
    found = json.loads(fabricd("health", "look", "--live", "--json"))["decisions"]
    assert [(d["node"], d["rail"], d["action"], d["why"]) for d in found] == [
        ("n2", "r1", "rail", "not confirmed yet")
    ]
    status = fabricd("status", user="bob")
    assert "rail r1 has no carrier on n2" in status and "Rails  5 up, 1 no carrier" in status
    fleet.heal_all()
    said = json.loads(fabricd("place", str(job), "--spares", "1", "--json"))
    assert said["job"] == job and set(said["spares"]) <= {f"n{at}" for at in range(3, 9)}
    assert len(said["spares"]) == 1
    assert not fabricd("place", str(job), user="bob")
    assert "sbatch -N3 --fabric-resilience" in fabricd("place", "--nodes", "3")
    fleet.exec("ctl", ["scancel", str(job)])
    until(lambda: ended(fleet, job), "the job does not end")


def health(lab: Lab, *words: str) -> set[tuple[str, str, str, str]]:
    """``(node, rail, action, outcome)`` of a policy that acts."""
    policy = ["FABRICCTL_HEALTH_MODE=on", "FABRICCTL_HEALTH_MAX_AT_ONCE=2"]
    argv = ["env", *policy, "fabricctl", "health", *words, "--json"]
    done = lab.exec("ctl", argv, check=False, timeout_s=100)
    assert done.stdout, done.stderr
    return {
        (d["node"], d["rail"], d["action"], d["outcome"])
        for d in json.loads(done.stdout)["decisions"]
    }


def test_the_audit_finds_what_is_broken_and_nothing_else(fleet: Lab) -> None:
    """Six faults of six kinds at once, each laid at the right door."""

    def bad() -> set[tuple[str, str, str]]:
        done = fleet.exec("ctl", ["fabricctl", "audit", "n[1-8]", "--json"], check=False,
                          timeout_s=100)  # fmt: skip
        checks = json.loads(done.stdout)["checks"]
        assert len({check["node"] for check in checks}) == 8
        return {
            (c["node"], c["rail"], c["name"]) for c in checks if c["status"] not in ("ok", "warn")
        }

    assert bad() == set()
    fleet.fault("cut", "n1", "r0")
    fleet.fault("blackhole", "n2", "r1", direction="tx")
    fleet.fault("loss", "n4", "r1", percent=15.0)
    fleet.fault("loss-large", "n3", "r0", above=1000)
    fleet.fault("disk-full", "n5", "spool")
    fleet.fault("stop", "n6", "fabricctl.node.service")
    try:
        found = bad()
        acted = [health(fleet, "look", "n[1,5,7]") for _ in range(2)][1]
        fleet.exec("ctl", ["scontrol", "update", "NodeName=n8", "State=DRAIN", "Reason=a fan"])
        back = health(fleet, "return", "n[1-8]")
    finally:
        fleet.heal_all()
        fleet.exec("ctl", ["scontrol", "update", "NodeName=n8", "State=RESUME"])
    assert acted == {("n1", "r0", "rail", "done"), ("n5", "", "drain", "done")}
    assert back == {("n1", "r0", "return", "done"), ("n5", "", "return", "done"),
                    ("n8", "", "return", "refused")}  # fmt: skip
    assert ("n1", "r0", "carrier") in found
    assert found - {("n1", "r0", "reach")} == {
        ("n1", "r0", "carrier"),
        ("n2", "r1", "reach"),
        ("n4", "r1", "loss"),
        ("n3", "r0", "large"),
        ("n5", "", "spool"),
        ("n6", "", "daemons"),
    }
