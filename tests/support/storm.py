"""Everything at once: jobs whose results are known, and under them links, nodes, services, disks,
clocks, Slurm's daemons and munge that fail at random."""

import contextlib
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabricctl import hostlist
from fabricctl.errors import LabError
from fabricctl.store import schema
from fabricctl.store.trace import Trace, open_trace
from tests.support.campaign import OVER, USERS, Campaign, said_of, trace_path

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/bin/python"
# What each kind of job is: nodes, script, and where in its output the result is.
PROGRAMS = {
    "ring": (
        4,
        f"fabricctl run --spares 1 {PYTHON} {ROOT}/examples/stencil.py --cells 1024 --steps 300"
        " --pause 0.02 --every 5",
        r"ring ([0-9a-f]{16})",
    ),
    "loop": (
        2,
        f"fabricctl run {PYTHON} {ROOT}/examples/allreduce.py --seconds 6 --kib 64",
        r"steps, (every sum right)",
    ),
    "steps": (2, "srun true && srun sleep 2 && srun -l sh -c 'echo task'", r"1: (task)"),
}
BEGUN = "the job script begins"
HEAD = "#!/bin/bash\nexport OMPI_MCA_mpi_yield_when_idle=1\n"
REQUEUE_S = 10.0  # after the death of a job script's node, by its user
FORGOTTEN_S = 20.0
COLLECT_S = 60.0  # after a job's end its nodes' parts come together
AT_ONCE = 4  # jobs: their ranks share the machine's few cores
# Faults that may end a job by themselves, whatever we do: Slurm's own parts and the file system.
SLURMS = ("slurmd", "slurmctld", "munged", "m0", "disk", "shared-full")
FAILED = (
    schema.LaunchEvent.RANKS_DEAD,
    schema.LaunchEvent.NODE_DEAD,
    schema.LaunchEvent.HANG,
)
DEATHS = ("power-off", "node-kill", "freeze")


@dataclass
class Harm:
    """A fault, where (`ctl` and `shared`: everybody's) and when, in seconds of CLOCK_MONOTONIC."""

    kind: str
    where: str
    begin_s: float
    end_s: float = float("inf")


@dataclass
class Tracked:
    """A job: when it was submitted and seen to be over, where it was seen."""

    job: int
    user: str
    kind: str
    protected: bool
    begin_s: float
    end_s: float = float("inf")
    state: str = ""
    nodes: set[str] = field(default_factory=set)
    script: str = ""  # the node of the job script
    lost_s: float | None = None  # when that one died
    unknown_s: float | None = None  # since when Slurm does not know the job


@dataclass
class Storm(Campaign):
    """What is harmed is noted with its time, for who must find it in the records."""

    tracked: list[Tracked] = field(default_factory=list)
    harmed: list[Harm] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)  # of each kind, of an unbroken run
    begin_s: float = field(default_factory=time.monotonic)
    reasons: list[str] = field(default_factory=list)  # why nodes were drained or down

    # Jobs

    def start(self, kind: str, user: str, *, flag: bool = True) -> Tracked:
        nodes, script, _ = PROGRAMS[kind]
        argv = ["sbatch", "--parsable", "--no-kill", "--requeue", "--open-mode=append", "-pall"]
        argv += [f"-N{nodes}", f"-n{nodes}", "-o", "storm-%j.out", "--mem=64"]
        argv += ["--fabric-resilience"] if flag else []
        text = f"{HEAD}echo {BEGUN}\n{script}\nstatus=$?\necho exit status $status\nexit $status\n"
        job = int(self.lab.run(argv, user=user, input=text).stdout)
        self.tracked.append(Tracked(job, user, kind, flag, time.monotonic()))
        return self.tracked[-1]

    def submit(self) -> None:
        kind = self.rng.choice(("ring", "ring", "loop", "steps"))
        user, flag = self.rng.choice(USERS), kind != "steps" or self.rng.random() < 0.7
        with contextlib.suppress(LabError):  # slurmctld is away
            self.start(kind, user, flag=flag)

    def learn(self) -> None:
        """What each kind of job gives when nothing fails."""
        items = [self.start(kind, "alice") for kind in PROGRAMS]
        deadline_s = time.monotonic() + 180
        while self.active():
            assert time.monotonic() < deadline_s, [self.output(item) for item in items]
            time.sleep(0.3)
            self.look()
        for item in items:
            found = re.findall(PROGRAMS[item.kind][2], self.output(item))
            assert found and "exit status 0" in self.output(item), (item, self.output(item))
            self.results[item.kind] = found[-1]

    def output(self, item: Tracked) -> str:
        path = self.lab.paths.shared / "home" / item.user / f"storm-{item.job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def look(self) -> None:
        """Where jobs are, and how; those that Slurm makes wait after a requeue go on."""
        argv = ["squeue", "-h", "-r", "-t", "all", "-o", "%A|%T|%N|%r"]
        try:
            lines = self.lab.run(argv, user="alice", timeout_s=10).stdout.splitlines()
        except (LabError, subprocess.TimeoutExpired):
            return
        found = {int(words[0]): words[1:] for words in (line.split("|") for line in lines)}
        for item in self.active():
            state, nodes, why = found.get(item.job, ("", "", ""))
            item.state = state or item.state
            if self.is_forgotten(item, known=bool(state)):
                item.state, item.end_s = "FORGOTTEN", time.monotonic()
            item.nodes |= set(hostlist.expand(nodes)) if nodes else set()
            if state == "RUNNING":
                item.script = hostlist.expand(nodes)[0]
            if state in OVER:
                item.end_s = time.monotonic()
            elif state == "RUNNING" and self.has_lost_its_script(item):
                self.admin("scontrol", "requeue", str(item.job))
                item.lost_s = None
            elif state == "PENDING" and why == "BeginTime":
                self.admin("scontrol", "update", f"JobId={item.job}", "StartTime=now")
            elif (
                state == "PENDING" and "held" in why.lower()
            ):  # by Slurm: slurmctld died as it began
                self.admin("scontrol", "release", str(item.job))

    def is_forgotten(self, item: Tracked, *, known: bool) -> bool:
        """A slurmctld that was killed knows no job that began after it had last written them."""
        if known:
            item.unknown_s = None
        elif item.unknown_s is None:
            item.unknown_s = time.monotonic()
        return item.unknown_s is not None and time.monotonic() > item.unknown_s + FORGOTTEN_S

    def has_lost_its_script(self, item: Tracked) -> bool:
        """Its node is back before the job's others act (`state.script_lost_s`), and before Slurm
        misses the script: a real one takes minutes to start."""
        if item.script in self.dead(but="freeze"):
            item.lost_s = time.monotonic() if item.lost_s is None else item.lost_s
        return item.lost_s is not None and time.monotonic() > item.lost_s + REQUEUE_S

    def active(self) -> list[Tracked]:
        return [item for item in self.tracked if item.end_s == float("inf")]

    def resume(self) -> None:
        """As an administrator would: nodes that Slurm took out for what failed come back."""
        lines = self.admin("sinfo", "-N", "-h", "-p", "all", "-o", "%N|%t|%E").splitlines()
        for node, state, reason in (line.split("|") for line in lines):
            if state.startswith(("drain", "drng", "down")) and node not in self.dead():
                self.reasons.append(f"{node}: {reason}")
                self.admin("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def admin(self, *argv: str) -> str:
        """What it says; nothing where Slurm does not answer now."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.lab.exec("ctl", list(argv), check=False, timeout_s=10).stdout
        return ""

    # Mischief

    def harm(self) -> None:
        dead = self.dead()
        node = self.rng.choice([name for name in self.lab.spec.compute_nodes if name not in dead])
        what = self.rng.choice(
            (self.link, self.link, self.link, self.death, self.kill_agent, self.kill_service,
             self.kill_sealer, self.fill_spool, self.fill_shared, self.fill_disk, self.freeze,
             self.freeze_service, self.break_config, self.slurms, self.slurms, self.clock,
             self.management)
        )  # fmt: skip
        if what in (self.kill_agent, self.kill_service, self.kill_sealer, self.break_config):
            now_s = time.monotonic()
            self.harmed.append(Harm(what.__name__.replace("_", " "), node, now_s, now_s))
        what(node)

    def dead(self, but: str = "") -> set[str]:
        """Nodes without power, or frozen, now."""
        there = [one.fault for one in self.lab.in_force()]
        return {one.target[0] for one in there if one.kind in DEATHS and one.kind != but}

    def fault(self, for_s: float, kind: str, *target: str, **options: Any) -> None:
        """The lab heals it by itself, also while Slurm's commands here wait for slurmctld."""
        with contextlib.suppress(LabError):  # the same is in force already
            self.lab.fault(kind, *target, for_s=for_s, **options)

    def read_log(self) -> None:
        """When each fault truly began and was healed, as the lab has it."""
        begun: dict[str, Harm] = {}
        for line in self.lab.log():
            at_s = line["mono_ns"] / 1e9
            if line["event"] == "heal" and line["id"] in begun:
                begun.pop(line["id"]).end_s = at_s
            elif line["event"] == "fault" and at_s >= self.begin_s:
                kind, target = line["kind"], line["target"]
                where = target[0] if target and target[0] in self.lab.spec.all_nodes else "shared"
                if kind in ("kill", "disk-full", "cut") and target[1] in SLURMS:
                    kind = target[1]
                begun[line["id"]] = Harm(kind, where, at_s)
                self.harmed.append(begun[line["id"]])

    def link(self, node: str) -> None:
        """All that overlap are on one rail: with none left a job can only wait."""
        here = [item.fault.target[1] for item in self.lab.in_force() if len(item.fault.target) > 1]
        rail = next((name for name in here if name in self.lab.spec.rail_names), "")
        kind, options = self.rng.choice(
            (("cut", {}), ("blackhole", {}), ("blackhole", {"direction": "tx"}),
             ("blackhole", {"direction": "rx"}), ("loss", {"percent": 5.0}),
             ("loss-large", {"above": 1000}), ("rate", {"rate": "10mbit"}),
             ("flap", {"period_s": 0.2}), ("carrier-flap", {"period_s": 0.3}))
        )  # fmt: skip
        rail = rail or self.rng.choice(self.lab.spec.rail_names)
        self.fault(self.rng.uniform(0.3, 5), kind, node, rail, **options)

    def death(self, node: str) -> None:
        """One at a time."""
        if not self.dead():
            self.fault(self.rng.uniform(3, 8), self.rng.choice(DEATHS[:2]), node)

    def freeze(self, node: str) -> None:
        if not self.dead():
            self.fault(self.rng.uniform(0.2, 4), "freeze", node)

    def slurms(self, node: str) -> None:
        service = self.rng.choice(("slurmd", "slurmctld", "munged"))
        where = "ctl" if service == "slurmctld" else self.rng.choice((node, node, node, "ctl"))
        if (service, where) == ("slurmd", "ctl"):
            where = node
        self.fault(self.rng.uniform(0.5, 4), "kill", where, service)

    def fill_disk(self, node: str) -> None:
        self.fault(self.rng.uniform(0.5, 3), "disk-full", node, "disk")

    def management(self, node: str) -> None:
        self.fault(self.rng.uniform(0.3, 4), "cut", node, "m0")

    def clock(self, node: str) -> None:
        steps = {"step_ns": self.rng.choice((-1, 1)) * self.rng.randrange(10**4, 10**8)}
        wander = {"drift_ppb": self.rng.uniform(-2e4, 2e4), "wander_ppb": 100.0}
        self.fault(self.rng.uniform(1, 8), "clock", node, **self.rng.choice((steps, wander)))

    # What is told

    def during(self, item: Tracked, after_s: float = 2) -> list[Harm]:
        """What was harmed, anywhere, in the job's time and a little after it."""
        begin_s, end_s = item.begin_s - 2, item.end_s + after_s
        return [harm for harm in self.harmed if harm.begin_s < end_s and harm.end_s > begin_s]

    def excuses(self, item: Tracked) -> list[Harm]:
        """What may have ended the job for reasons that are not ours to mend."""
        places = item.nodes | {"ctl", "shared"}
        near = [harm for harm in self.during(item) if harm.where in places]
        deaths = [harm for harm in near if harm.kind in DEATHS]
        spare = item.kind == "ring"
        if spare and len(deaths) == 1:
            deaths = []
        return [harm for harm in near if harm.kind in SLURMS] + deaths

    def problems(self) -> Iterator[str]:
        """Of every job: a wrong result, an end without a reason, a trace that is not right. And
        nodes that we took out."""
        yield from (why for why in self.reasons if re.search("fabric|rolog", why))
        for item in self.tracked:
            text, (_, _, pattern) = self.output(item), PROGRAMS[item.kind]
            found = re.findall(pattern, text)
            who = f"{item.kind} {item.job} of {item.user} on {sorted(item.nodes)}: {item.state}"
            if any(one != self.results[item.kind] for one in found):
                yield f"{who}: the result is wrong: {found}\n{text[-2000:]}"
            if not self.ended_well(item, text) and not self.excuses(item):
                yield f"{who}: it ended without a reason\n{text[-3000:]}{self.around(item)}"
            for what in (*self.of_trace(item), *self.of_restarts(item, text)):
                yield f"{who}: {what}{self.around(item)}"

    def of_trace(self, item: Tracked) -> Iterator[str]:
        path = trace_path(self.lab, item.user, item.job)
        if not item.protected or not item.nodes:
            # A slurmctld that was killed may give a number again.
            same = [one for one in self.tracked if (one.user, one.job) == (item.user, item.job)]
            if path.exists() and not any(one.protected for one in same):
                yield "has a trace"
            return
        if not path.exists():
            if not self.excuses(item):
                yield "has no trace"
            return
        with open_trace(path) as trace:
            near = self.during(item, COLLECT_S)
            harmed = {harm.where for harm in near if harm.kind in (*SLURMS, *DEATHS)}
            if "ctl" not in harmed:
                for node in set(trace.job.missing_nodes) - harmed:
                    yield "\n".join([f"without {node}", *said_of(self.lab, node, item.job)])
            dead = {harm.where for harm in near if harm.kind in DEATHS}
            for nodes in launches(trace, schema.LaunchEvent.NODE_DEAD):
                for node in set(hostlist.expand(nodes)) - dead:
                    yield f"{node} was called dead and was not"

    def give_up(self) -> None:
        """Of jobs of which a node died: an srun that was not told so waits for it for ever, where
        slurmctld or a slurmd was away at that moment. They are judged as all are."""
        for item in self.active():
            if any(one.kind in DEATHS and one.where in item.nodes for one in self.during(item)):
                self.lab.exec("ctl", ["scancel", str(item.job)], check=False)

    def stuck(self, item: Tracked) -> str:
        """What is to be known of a job that does not end."""
        show = ["scontrol", "show", "job", str(item.job)]
        told = [f"{item.kind} {item.job}: does not end", self.output(item)[-2000:]]
        told += [self.lab.exec("ctl", show, check=False).stdout]
        tree = ["ps", "-eo", "pid,ppid,stat,etimes,args"]
        for node in sorted(item.nodes):
            lines = self.lab.exec(node, tree, check=False).stdout.splitlines()
            told += [f"{node}: {line[:160]}" for line in lines if "lab.init" not in line]
        return "\n".join([*told, self.around(item)])

    def of_restarts(self, item: Tracked, text: str) -> Iterator[str]:
        """Each start but the first of a job script has its reason in the job's traces. That the
        script itself runs again is Slurm's doing: a requeue, or a slurmctld that was killed and
        takes up jobs as it had last written them. It says so, where there was room, and where it
        was protected there is one more trace."""
        paths = sorted(trace_path(self.lab, item.user, item.job).parent.glob(f"job-{item.job}.*h5"))
        told = 0
        for path in paths:
            with open_trace(path) as trace:
                told += len(launches(trace, *FAILED))
        starts, scripts = text.count("from step"), max(1, text.count(BEGUN), len(paths))
        if starts > scripts + told:
            yield f"{starts} starts in {scripts} scripts, {told} failures in {len(paths)} traces"

    def around(self, item: Tracked) -> str:
        """The mischief in the job's time."""
        near = [
            f"{harm.begin_s:.1f} to {harm.end_s:.1f} {harm.kind} {harm.where}"
            for harm in self.harmed
            if harm.begin_s < item.end_s + 5 and harm.end_s > item.begin_s - 5
        ]
        return f"\n  {item.begin_s:.1f} to {item.end_s:.1f}, meanwhile:\n  " + "\n  ".join(near)

    def jobs_told(self) -> str:
        lines = []
        for item in self.tracked:
            text = self.output(item)
            begins = re.findall(r"from step (\d+)", text)
            what = f"{item.kind} {item.job} {item.begin_s:.1f} to {item.end_s:.1f} {item.state}"
            lines.append(f"{what} on {sorted(item.nodes)}, from {begins}, {text[-60:]!r}")
        return "\n".join(lines)

    def ended_well(self, item: Tracked, text: str) -> bool:
        """With its result told: Slurm may say COMPLETED of a job whose output had no room."""
        found = re.findall(PROGRAMS[item.kind][2], text)
        ends = re.findall(r"^exit status (\d+)$", text, re.MULTILINE)  # then what the plugin tells
        return item.state == "COMPLETED" and bool(found) and ends[-1:] == ["0"]

    def tally(self) -> dict[str, dict[str, int]]:
        """Faults by kind; jobs by kind and how they ended."""
        ends = Counter(f"{item.kind} {self.end_of(item)}" for item in self.tracked)
        return {"faults": dict(Counter(harm.kind for harm in self.harmed)), "jobs": dict(ends)}

    def end_of(self, item: Tracked) -> str:
        if self.ended_well(item, self.output(item)):
            return "right"
        return "without its output" if item.state == "COMPLETED" else "ended by a fault"


def launches(trace: Trace, *events: schema.LaunchEvent) -> list[str]:
    """The nodes named by these rows of all nodes' tables."""
    found = []
    for node in trace.nodes:
        rows = trace.table(node, schema.LAUNCH)
        found += [row["node"].decode() for row in rows if row["event"] in events]
    return found
