"""The lab: a real multi-node Slurm on this machine, one init process and its namespaces a node."""

import calendar
import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError, SystemRefusedError
from fabricctl.lab import accounting, cgroups, freezer, kernel
from fabricctl.lab.diskfull import mount_tmpfs
from fabricctl.lab.etc import make_disk, make_etc, make_shared
from fabricctl.lab.faults import Faults
from fabricctl.lab.kinds import Fault, make_fault
from fabricctl.lab.lock import locked
from fabricctl.lab.nodes import Nodes, NodeStatus, search_path
from fabricctl.lab.registry import InForce
from fabricctl.lab.site import NODE_SERVICE, Site
from fabricctl.lab.spec import BASE, CONTROLLER, LabPaths, LabSpec
from fabricctl.lab.stamp import Stamp
from fabricctl.lab.wiring import wire

_TOOLS: Mapping[str, str] = {  # program: the apt package it comes in
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
    "munged": "munge",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
_IDLE_S = 90.0  # 0.2 s after the last node's boot on an idle machine with two cores
_RESTARTS_MOST = 3  # of a node service that never came to take requests
# sinfo's short states of a node that answers and takes jobs
_FIT = ("idle", "mix", "alloc", "comp")


class Lab:
    """One lab, named; nothing of it need exist yet.

    As a context manager it is brought up and taken down::

        with Lab(LabSpec(name="mine")) as lab:
            lab.fault("cut", "n2", "r0", for_s=3)
            lab.run(["srun", "-N4", "hostname"])
    """

    def __init__(self, spec: LabSpec | None = None, *, name: str = "lab") -> None:
        """``spec``: what to bring up; ``name``: the lab of that name as it is, or by default."""
        self.spec = spec or LabSpec(name=name)
        self.paths = LabPaths(self.spec.name)
        if spec is None and self.exists():
            self.spec = LabSpec.from_json(self.paths.spec.read_text())
        self.name = self.spec.name
        self.nodes = Nodes(self.spec, self.paths)
        self.faults = Faults(self.nodes, self._site)

    def __enter__(self) -> "Lab":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def exists(self) -> bool:
        """Whether there is anything of it; half-dead counts."""
        try:
            return self.paths.spec.is_file()
        except PermissionError:
            raise SystemRefusedError(f"lab {self.name}: is root's; ask as root") from None

    def _site(self) -> Site | None:
        return None if self.spec.bare else Site.find()

    # Up --------------------------------------------------------------------------------------

    def up(self, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Brings everything up that is not: from nothing, or what died of a lab; heals all faults.

        Returns when every node is idle or runs jobs. Raises :class:`LabError` with what is in
        the way; what was done until then stays and a second call goes on from there.
        """
        preflight(self.spec)
        with locked(self.paths):
            self._refuse_other_spec()
            self._make_state()
            site = self._site()
            if site and site.missing:
                say(f"not built yet, left out: {', '.join(site.missing)}")
            reconfigured = make_etc(self.spec, self.paths, site)
            make_shared(self.paths)
            wire(self.spec, self.paths)
            self._thaw()
            before = {name: self.nodes.pid(name) for name in self.spec.compute_nodes}
            healed = self.faults.heal_all(cause="up", already_locked=True)
            if healed:
                say(f"healed: {', '.join(healed)}")
            self.faults.reset_ports()
            started = self.nodes.start(self.spec.all_nodes, site)
            if reconfigured and CONTROLLER not in started:
                self.exec(CONTROLLER, ["scontrol", "reconfigure"], check=False)
            self._wait_idle({name for name, pid in before.items() if pid != self.nodes.pid(name)})
            if site is not None and site.has_service:
                self._wait_services(say)
        for name in self.nodes.outdated(site):
            say(f"node {name} runs with what was built when it was started; lab down renews it")

    def _refuse_other_spec(self) -> None:
        if not self.exists():
            return
        there = LabSpec.from_json(self.paths.spec.read_text())
        if there != self.spec:
            raise LabError(
                f"lab {self.name} is up with other settings ({there.nodes} nodes, {there.rails} "
                f"rails): take it down first (fabricctl lab down --name {self.name})"
            )

    def _make_state(self) -> None:
        state = self.paths.state
        state.mkdir(parents=True, exist_ok=True)
        if not kernel.is_mount(state):
            kernel.mount("fabricctl-lab", state, "tmpfs", kernel.MS_NOSUID, "mode=700")
        # Mounts below must not spread into other mount namespaces and stay there.
        kernel.mount("none", state, "", kernel.MS_PRIVATE)
        new = self.paths.spec.with_suffix(".new")
        new.write_text(self.spec.to_json())
        new.replace(self.paths.spec)
        for path in (self.paths.nodes, self.paths.faults):
            path.mkdir(exist_ok=True)
        mount_tmpfs(self.paths.shared, "755")
        for name in self.spec.all_nodes:
            node = self.paths.node(name)
            for directory in (node.dir, node.root, node.lab):
                directory.mkdir(exist_ok=True)
            mount_tmpfs(node.disk, "755")
            mount_tmpfs(node.spool, "711")
            make_disk(node.disk)

    def _thaw(self) -> None:
        """Also a node that was frozen by hand."""
        for name in self.spec.all_nodes:
            if freezer.is_frozen(self.paths, name):
                freezer.thaw(self.paths, name)

    def _wait_idle(self, rebooted: set[str]) -> None:
        """Until Slurm takes jobs on every node. ``rebooted``: nodes on which no job lives."""
        deadline = time.monotonic() + _IDLE_S
        begun_s = {name: self.nodes.slurmd_start_s(name) for name in self.spec.compute_nodes}
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            states = self.slurm_states()
            waiting = [
                name
                for name in self.spec.compute_nodes
                if states.get(name) not in _FIT or (name in rebooted and states[name] == "comp")
            ]
            # slurmctld may not have noticed yet that a node is another one than before: a job
            # that it sends there now would fail when the new slurmd registers.
            known_s = {} if waiting else self._registered_s()
            if all(known_s.get(name, 0) >= begin_s for name, begin_s in begun_s.items()):
                return
            for name in waiting:
                self._help(name, states.get(name, ""))
            time.sleep(0.05)
        raise LabError(f"lab {self.name}: after {_IDLE_S:.0f} s Slurm says {states or 'nothing'}")

    def _wait_services(self, say: Callable[[str], None]) -> None:
        """Until node services take requests, also on nodes that a fault's end has booted: a step
        before that is told that it is not protected."""
        deadline = time.monotonic() + _IDLE_S
        seen = "/proc/{}/root/run/fabricctl/boot_id"  # what init of the node sees
        marks = {name: Path(seen.format(self.nodes.pid(name))) for name in self.spec.compute_nodes}
        while late := sorted(name for name, path in marks.items() if not path.is_file()):
            if time.monotonic() > deadline or all(map(self._service_fails, late)):
                say(f"no node service takes requests yet on {', '.join(late)}")
                return
            time.sleep(0.05)

    def _service_fails(self, name: str) -> bool:
        """A site whose configuration is broken has none."""
        service = self.nodes.status(name).services.get(NODE_SERVICE)
        return service is not None and int(service["restarts"]) >= _RESTARTS_MOST

    def _help(self, name: str, state: str) -> None:
        """Tells slurmctld what it would not find out by itself, or only in a minute."""
        if state == "comp":
            # The node died with the word that its job ended: slurmctld asks again after 60 s.
            self._update(name, "State=DOWN", "Reason=rebooted by the lab")
        if state == "comp" or "drain" in state or "drng" in state:
            self._update(name, "State=RESUME")

    def _update(self, node: str, *settings: str) -> None:
        argv = ["scontrol", "update", f"NodeName={node}", *settings]
        self.exec(CONTROLLER, argv, check=False, timeout_s=10)

    def slurm_states(self) -> dict[str, str]:
        """Each compute node's state in sinfo's short form; empty while slurmctld is not there."""
        argv = ["sinfo", "-h", "-N", "-p", "all", "-o", "%N %t"]
        try:
            done = self.exec(CONTROLLER, argv, check=False, timeout_s=10)
        except (LabError, subprocess.TimeoutExpired):
            return {}
        pairs = (line.split() for line in done.stdout.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def _registered_s(self) -> dict[str, int]:
        """For each compute node the start of the slurmd that slurmctld knows, in seconds UTC."""
        argv = ["scontrol", "show", "node", "-o"]
        try:
            done = self.exec(
                CONTROLLER, argv, check=False, timeout_s=10, environment={"TZ": "UTC0"}
            )
        except (LabError, subprocess.TimeoutExpired):
            return {}
        pattern = r"NodeName=(\S+) .*SlurmdStartTime=([0-9T:-]+)"
        found = (re.search(pattern, line) for line in done.stdout.splitlines())
        return {
            match.group(1): calendar.timegm(time.strptime(match.group(2), "%Y-%m-%dT%H:%M:%S"))
            for match in found
            if match
        }

    # Down ------------------------------------------------------------------------------------

    def down(self) -> None:
        """Ends every process of the lab and takes away all that it made. Where nothing is, nothing
        happens."""
        if os.geteuid() != 0:
            raise SystemRefusedError("lab: only root can take it down")
        if not self._leaves_a_trace():
            return
        with locked(self.paths):
            self._end_processes()
            state = self.paths.state
            while kernel.is_mount(state):
                kernel.unmount(state)
            if state.is_dir():
                state.rmdir()
            cgroups.remove(self.name)
            self.paths.lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            BASE.rmdir()  # another lab may still be there

    def _leaves_a_trace(self) -> bool:
        return (
            self.paths.lock.exists() or self.paths.state.exists() or bool(cgroups.groups(self.name))
        )

    def _end_processes(self) -> None:
        left: set[int] = set()
        for _ in range(1000):
            left = self.processes()
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            cgroups.thaw_all(self.name)
            time.sleep(0.01)
        raise LabError(f"lab {self.name}: processes {sorted(left)} do not end")

    def processes(self) -> set[int]:
        """Every process of the lab: in its control groups, its networks, or about to be."""
        found = set(cgroups.processes(self.name))
        inodes = {path.stat().st_ino for path in self.paths.net.glob("*")}
        marks = (
            f"fabricctl.lab.init\0{self.paths.state}/".encode(),
            f"fabricctl.lab.actor\0{self.name}\0".encode(),
        )
        for path in Path("/proc").iterdir():
            if not path.name.isdigit() or int(path.name) == os.getpid():
                continue
            try:
                command = (path / "cmdline").read_bytes()
                network = (path / "ns" / "net").stat().st_ino
            except OSError:
                continue  # it ended meanwhile, or is ending
            if network in inodes or any(mark in command for mark in marks):
                found.add(int(path.name))
        return found

    # Use -------------------------------------------------------------------------------------

    def status(self) -> list[NodeStatus]:
        """Every node as it is now."""
        self._check_up()
        return [self.nodes.status(name) for name in self.spec.all_nodes]

    def fault(
        self, kind: str, *target: str, for_s: float | None = None, **options: object
    ) -> Stamp:
        """Puts a fault in: ``lab.fault("loss", "n2", "r0", percent=1.0)``; when it took effect.

        Underscores in option names stand for the hyphens of the command line. With ``for_s`` it
        heals by itself. Raises :class:`~fabricctl.errors.UsageError` or :class:`LabError`.
        """
        self._check_up()
        named = {name.replace("_", "-"): value for name, value in options.items()}
        return self.faults.begin(make_fault(self.spec, kind, target, named), for_s=for_s)

    def heal(self, kind: str, *target: str) -> Stamp:
        """Heals a fault by the words that put it in."""
        self._check_up()
        return self.faults.heal(Fault(kind, target, {}).id)

    def heal_all(self) -> list[str]:
        """Heals every fault in force; their ids."""
        self._check_up()
        return self.faults.heal_all()

    def in_force(self) -> list[InForce]:
        """The faults in force, oldest first."""
        self._check_up()
        return self.faults.registry.all()

    def log(self) -> list[dict[str, Any]]:
        """The fault log, oldest first (docs/lab.md has the fields)."""
        self._check_up()
        return self.faults.registry.entries()

    def exec_argv(
        self,
        node: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """A command line that runs ``argv`` on a node, in the user's home: for a terminal, or for
        a process of one's own."""
        self._check_up()
        if node not in self.spec.all_nodes:
            there = ", ".join(self.spec.all_nodes)
            raise LabError(f"no node {node!r} in lab {self.name}; there are: {there}")
        return self.nodes.exec_argv(node, argv, user=user, environment=environment)

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        check: bool = True,
        timeout_s: float | None = 60.0,
        input: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a node and returns its output.

        Raises :class:`LabError` when the node is down and, with ``check``, when the command
        fails; :class:`subprocess.TimeoutExpired` after ``timeout_s`` (the command is killed then).
        """
        done = subprocess.run(
            self.exec_argv(node, argv, user=user, environment=environment),
            capture_output=True,
            text=True,
            errors="replace",
            input="" if input is None else input,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise LabError(
                f"{' '.join(argv)!r} on {node}: status {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()[-400:]}"
            )
        return done

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "alice",
        check: bool = True,
        timeout_s: float | None = 60.0,
        input: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the login node as a job user."""
        return self.exec(
            CONTROLLER,
            argv,
            user=user,
            check=check,
            timeout_s=timeout_s,
            input=input,
            environment=environment,
        )

    def host_path(self, node: str, path: str) -> Path:
        """Where a file of a node lies for this machine: what is below /var, /shared and /etc."""
        inside = Path(path)
        for mount, here in (
            ("/var/spool/fabricctl", self.paths.node(node).spool),
            ("/var", self.paths.node(node).disk),
            ("/shared", self.paths.shared),
            ("/etc", self.paths.etc),
        ):
            if inside.is_relative_to(mount):
                return here / inside.relative_to(mount)
        raise LabError(f"{path} of node {node} can only be seen from inside (lab exec)")

    def _check_up(self) -> None:
        if not self.exists():
            raise LabError(f"lab {self.name} is not up (fabricctl lab up --name {self.name})")


def preflight(spec: LabSpec) -> None:
    """Raises :class:`SystemRefusedError` in one sentence when the lab cannot work here."""
    if os.geteuid() != 0:
        raise SystemRefusedError("lab: needs root: it makes namespaces, mounts and bridges")
    tools = {**_TOOLS, **(accounting.TOOLS if spec.accounting else {})}
    missing = {
        package for tool, package in tools.items() if not shutil.which(tool, path=search_path())
    }
    if missing:
        raise SystemRefusedError(
            f"lab: programs are missing: apt-get install {' '.join(sorted(missing))}"
        )
