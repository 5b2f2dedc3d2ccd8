"""The nodes of a lab: starting them, asking them, running commands on them, ending them."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError
from fabricctl.lab import accounting, cgroups, control, freezer, measured
from fabricctl.lab.boot import Boot, Service
from fabricctl.lab.site import Site, code_root
from fabricctl.lab.spec import CONTROLLER, JOB_USERS, SHARED, LabPaths, LabSpec
from fabricctl.lab.stamp import Stamp, Stopwatch

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAUNCH_S = 60.0  # 0.1 s on an idle machine with two cores
_DIE_S = 10.0  # a node's processes end in milliseconds, but for those in uninterruptible sleep


@dataclass(frozen=True)
class NodeStatus:
    """One node as it is now. ``services``: see :mod:`fabricctl.lab.init`."""

    name: str
    state: str  # up, down, frozen
    pid: int | None  # its init, as this machine counts
    services: Mapping[str, Mapping[str, Any]]


class Nodes:
    """All nodes of one lab."""

    def __init__(self, spec: LabSpec, paths: LabPaths) -> None:
        self.spec = spec
        self.paths = paths

    def start(self, names: Sequence[str], site: Site | None) -> set[str]:
        """Boots those of ``names`` that are down, at once, and starts services that ended on the
        others; which were booted."""
        starting = [(name, self._launch(name, site)) for name in names if self.pid(name) is None]
        for name, ready in starting:
            _await_ready(name, ready, self.paths.node(name).console)
        fresh = {name for name, _ in starting}
        for name in names:
            if name not in fresh:
                self._start_services(name)
        return fresh

    def outdated(self, site: Site | None) -> list[str]:
        """Nodes that were booted with other services than a boot now would give them."""
        found: list[str] = []
        for name in self.spec.all_nodes:
            text = (self.paths.node(name).dir / "boot.json").read_text()
            if Boot.from_json(text).services != _services(self.spec, name, site):
                found.append(name)
        return found

    def _start_services(self, name: str) -> None:
        for service, state in self.status(name).services.items():
            if not state["up"] or state.get("stopped"):
                self.ask(name, {"do": "start", "service": service})

    def _launch(self, name: str, site: Site | None) -> int:
        """Starts a node's init; returns the pipe on which it will say that it is ready."""
        node = self.paths.node(name)
        boot = Boot(
            node=name,
            state=self.paths.state,
            netns=self.paths.node_netns(name),
            code=tuple(_code_directories()),
            cgroup_dirs=tuple(cgroups.renew(self.spec.name, name)),
            cgroup_mounts=_cgroup_mounts(),
            services=_services(self.spec, name, site),
            writable=measured.directories(),
            mounts=site.mounts() if site and name != CONTROLLER else (),
            directories=site.directories() if site and name != CONTROLLER else (),
        )
        file = node.dir / "boot.json"
        file.write_text(boot.to_json())
        ready, theirs = os.pipe()
        try:
            with node.console.open("ab") as console:
                subprocess.run(
                    [sys.executable, "-m", "fabricctl.lab.init", str(file), str(theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=(theirs,),
                    env={"PATH": search_path(), "PYTHONPATH": str(code_root())},
                    cwd="/",
                    timeout=_LAUNCH_S,
                    check=False,  # the pipe says more than a status
                )
        finally:
            os.close(theirs)
        return ready

    def kill(self, name: str) -> Stamp:
        """kill -9 of a node's init, and with it of all its processes; returns when they are gone.

        Raises :class:`LabError` when the node is down already.
        """
        pid = self.pid(name)
        if pid is None:
            raise control.NodeDownError(f"node {name} is down already")
        fd = os.pidfd_open(pid)
        try:
            watch = Stopwatch()
            os.kill(pid, 9)
            cgroups.thaw_all(self.spec.name, name)  # before they run a line they are dead
            _await_end(fd, name)
            return watch.stop()
        finally:
            os.close(fd)

    def pid(self, name: str) -> int | None:
        """The node's init as this machine counts, None when the node is down."""
        return control.init_pid(self.paths.node(name).control)

    def ask(self, name: str, request: Mapping[str, Any], timeout_s: float = 15.0) -> dict[str, Any]:
        """See :func:`fabricctl.lab.control.ask`. One that stands still is not waited for: who asks
        may keep it from being healed."""
        if freezer.is_frozen(self.paths, name):
            raise control.NodeStuckError(f"node {name} is frozen")
        return control.ask(self.paths.node(name).control, request, timeout_s)

    def status(self, name: str) -> NodeStatus:
        """What lives on one node."""
        try:
            answer = self.ask(name, {"do": "status"}, timeout_s=5)
        except control.NodeDownError:
            return NodeStatus(name, "down", None, {})
        except control.NodeStuckError:
            return NodeStatus(name, "frozen", self.pid(name), {})
        return NodeStatus(name, "up", self.pid(name), answer["services"])

    def slurmd_start_s(self, name: str) -> int:
        """When a node's slurmd was started, in whole seconds of CLOCK_REALTIME; 0: it is down."""
        slurmd = self.status(name).services.get("slurmd")
        if not slurmd or not slurmd["up"]:
            return 0
        ago_ns = time.monotonic_ns() - int(slurmd["started_mono_ns"])
        return (time.time_ns() - ago_ns) // 1_000_000_000

    def exec_argv(
        self,
        node: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command line that runs ``argv`` on a node, in the user's home."""
        pid = self.pid(node)
        if pid is None:
            raise control.NodeDownError(f"node {node} of lab {self.spec.name} is down")
        if user not in self._users():
            raise LabError(f"no user {user!r} in the lab; job users: {', '.join(JOB_USERS)}")
        home = f"{SHARED}/home/{user}" if user in JOB_USERS else "/"
        basic = {
            "PATH": search_path(),
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            **measured.environment(),
        }
        return control.enter_argv(
            pid,
            [cgroups.entry(top / node) for top in cgroups.groups(self.spec.name)],
            argv,
            user=user,
            directory=home,
            environment={**basic, **(environment or {})},
        )

    def _users(self) -> set[str]:
        with (self.paths.etc / "passwd").open() as lines:
            return {line.split(":")[0] for line in lines}


def search_path() -> str:
    """PATH inside the nodes: the environment that fabricctl runs from, then the system's."""
    return f"{Path(sys.executable).parent}:{_SYSTEM_PATH}"


def _code_directories() -> list[Path]:
    """What nodes must see of our own program, outside /usr and /opt."""
    wanted: list[Path] = []
    for path in (code_root(), Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()):
        shown = (Path("/usr"), Path("/opt"), *wanted)
        if not any(path.is_relative_to(there) for there in shown):
            wanted.append(path)
    return wanted


def _cgroup_mounts() -> dict[str, str]:
    """See :func:`fabricctl.lab.nodefs.enter`."""
    return {
        "" if tree.v2 else tree.mount.name: ",".join(tree.controllers)
        for tree in cgroups.hierarchies()
    }


def _services(spec: LabSpec, node: str, site: Site | None) -> tuple[Service, ...]:
    sbin = "/usr/sbin"
    munged = Service(
        "munged",
        (f"{sbin}/munged", "-F", "--num-threads=2"),
        user="munge",
        wait_for="/run/munge/munge.socket.2",
    )
    if node == CONTROLLER and spec.accounting:
        return (munged, *accounting.services(spec.name))
    if node == CONTROLLER:
        return (munged, Service("slurmctld", (f"{sbin}/slurmctld", "-D"), user="slurm"))
    slurmd = Service("slurmd", (f"{sbin}/slurmd", "-D"))
    return (munged, slurmd, *(site.services() if site else ()))


def _await_ready(name: str, ready: int, console: Path) -> None:
    with os.fdopen(ready) as stream:
        line = stream.readline().strip()
    if line != "ready":
        said = line.removeprefix("error ") or "its init died"
        raise LabError(f"node {name} did not start: {said} (see {console})")


def _await_end(fd: int, name: str) -> None:
    """Until a process that is not our child is gone, its whole pid namespace with it."""
    if not select.select([fd], [], [], _DIE_S)[0]:
        raise LabError(f"node {name}: its processes do not end")
