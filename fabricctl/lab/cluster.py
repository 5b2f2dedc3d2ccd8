"""The lab: a real multi-node Slurm on this machine, one init process and its namespaces a node."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError, SystemRefusedError
from fabricctl.lab import cgroups, control, kernel
from fabricctl.lab.boot import Boot, Service
from fabricctl.lab.etc import make_disk, make_etc, make_shared
from fabricctl.lab.site import Site, code_root
from fabricctl.lab.spec import BASE, CONTROLLER, JOB_USERS, SHARED, LabPaths, LabSpec
from fabricctl.lab.wiring import wire

_TOOLS: Mapping[str, str] = {  # program: the apt package it comes in
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
    "munged": "munge",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_S = 30.0  # 0.4 s on an idle machine with two cores
_IDLE_S = 60.0  # 2 s on an idle machine with two cores
_SPOOL_SIZE, _DISK_SIZE, _SHARED_SIZE = "256m", "1g", "4g"


@dataclass(frozen=True)
class NodeStatus:
    """One node as it is now."""

    name: str
    state: str  # up, down, frozen
    pid: int | None
    services: Mapping[str, Mapping[str, Any]]


class Lab:
    """One lab, named; nothing of it need exist yet.

    As a context manager it is brought up and taken down::

        with Lab(LabSpec(name="mine")) as lab:
            lab.exec("ctl", ["srun", "-N4", "hostname"], user="alice")
    """

    def __init__(self, spec: LabSpec | None = None, *, name: str | None = None) -> None:
        """``spec``: what to bring up; ``name``: an existing lab, or one with defaults."""
        wanted = spec or LabSpec(name=name or "lab")
        self.paths = LabPaths(wanted.name)
        self.name = wanted.name
        self.spec = wanted
        if spec is None and self.exists():
            self.spec = LabSpec.from_json(self.paths.spec.read_text())

    def __enter__(self) -> "Lab":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def exists(self) -> bool:
        """Whether there is anything of it; half-dead counts."""
        return self.paths.spec.is_file()

    # Up --------------------------------------------------------------------------------------

    def up(self, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Brings everything up that is not: from nothing, or what died of a lab.

        Returns when every node is idle (or runs jobs). Raises :class:`LabError` with what is in
        the way; what was done until then stays and a second call goes on from there.
        """
        preflight()
        with self._locked():
            self._refuse_other_spec()
            self._make_state()
            site = None if self.spec.bare else Site.find()
            if site and site.missing:
                say(f"not built yet, left out: {', '.join(site.missing)}")
            make_etc(self.spec, self.paths, site)
            make_shared(self.paths)
            wire(self.spec, self.paths)
            self._start_nodes(site)
            self._wait_idle()

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
        self.paths.spec.write_text(self.spec.to_json())
        for path in (self.paths.nodes, self.paths.faults):
            path.mkdir(exist_ok=True)
        _tmpfs(self.paths.shared, _SHARED_SIZE, "755")
        for name in self.spec.all_nodes:
            node = self.paths.node(name)
            for directory in (node.dir, node.root):
                directory.mkdir(exist_ok=True)
            _tmpfs(node.disk, _DISK_SIZE, "755")
            _tmpfs(node.spool, _SPOOL_SIZE, "711")
            make_disk(node.disk)

    def _start_nodes(self, site: Site | None) -> None:
        starting = [
            (name, self._launch(name, site))
            for name in self.spec.all_nodes
            if self._pid(name) is None
        ]
        for name, ready in starting:
            _await_ready(name, ready, self.paths.node(name).console)
        fresh = {name for name, _ in starting}
        for name in self.spec.all_nodes:
            if name not in fresh:
                self._start_services(name)

    def _start_services(self, name: str) -> None:
        for service, state in self.node_status(name).services.items():
            if not state["up"]:
                self._ask(name, {"do": "start", "service": service})

    def _launch(self, name: str, site: Site | None) -> int:
        """Starts a node's init; returns the pipe on which it will say that it is ready."""
        node = self.paths.node(name)
        boot = Boot(
            node=name,
            state=self.paths.state,
            netns=self.paths.node_netns(name),
            code=tuple(_code_directories()),
            cgroup_dirs=tuple(cgroups.make(self.name, name)),
            cgroup_mounts=_cgroup_mounts(),
            services=_services(name, site),
        )
        file = node.dir / "boot.json"
        file.write_text(boot.to_json())
        ready, theirs = os.pipe()
        with node.console.open("ab") as console:
            subprocess.run(
                [sys.executable, "-m", "fabricctl.lab.init", str(file), str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(theirs,),
                env={"PATH": _path()},
                cwd="/",
                timeout=_BOOT_S,
            )
        os.close(theirs)
        return ready

    def _wait_idle(self) -> None:
        """Until Slurm calls every node idle or busy with jobs."""
        deadline = time.monotonic() + _IDLE_S
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            states = self.slurm_states()
            waiting = [name for name in self.spec.compute_nodes if not _is_fit(states.get(name))]
            if not waiting:
                return
            self._resume([name for name in waiting if "drain" in states.get(name, "")])
            time.sleep(0.05)
        raise LabError(f"lab {self.name}: after {_IDLE_S:.0f} s Slurm says {states or 'nothing'}")

    def _resume(self, names: Sequence[str]) -> None:
        for name in names:
            argv = ["scontrol", "update", f"NodeName={name}", "State=RESUME"]
            self.exec(CONTROLLER, argv, check=False, timeout_s=10)

    def slurm_states(self) -> dict[str, str]:
        """Each compute node's state in sinfo's short form; empty while slurmctld is not there."""
        argv = ["sinfo", "-h", "-N", "-p", "all", "-o", "%N %t"]
        try:
            done = self.exec(CONTROLLER, argv, check=False, timeout_s=10)
        except (LabError, subprocess.TimeoutExpired):
            return {}
        return dict(line.split()[:2] for line in done.stdout.splitlines() if " " in line)

    # Down ------------------------------------------------------------------------------------

    def down(self) -> None:
        """Ends every process of the lab and takes away all that it made. Nothing there: nothing
        happens."""
        if os.geteuid() != 0:
            raise SystemRefusedError("lab: only root can take it down")
        if not BASE.is_dir():
            return
        with self._locked():
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

    def _end_processes(self) -> None:
        for name in self.spec.all_nodes:
            if cgroups.is_frozen(self.name, name):
                cgroups.freeze(self.name, name, False)
        for _ in range(500):
            left = set(self.processes())
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.01)
        raise LabError(f"lab {self.name}: processes {sorted(left)} do not end")

    def processes(self) -> Iterator[int]:
        """Every process of the lab: in its control groups, its networks, or starting up."""
        yield from cgroups.processes(self.name)
        inodes = {path.stat().st_ino for path in self.paths.net.glob("*")}
        mark = f"{self.paths.state}/".encode()
        for path in Path("/proc").iterdir():
            if not path.name.isdigit() or int(path.name) == os.getpid():
                continue
            try:
                command = (path / "cmdline").read_bytes()
                if (path / "ns" / "net").stat().st_ino in inodes or (
                    b"fabricctl.lab." in command and mark in command
                ):
                    yield int(path.name)
            except OSError:
                continue  # it ended meanwhile, or is ending

    # Nodes -----------------------------------------------------------------------------------

    def node_status(self, name: str) -> NodeStatus:
        """What lives on one node."""
        if cgroups.is_frozen(self.name, name):
            return NodeStatus(name, "frozen", self._pid(name), {})
        try:
            answer = self._ask(name, {"do": "status"}, timeout_s=5)
        except control.NodeDownError:
            return NodeStatus(name, "down", None, {})
        except control.NodeStuckError:
            return NodeStatus(name, "frozen", self._pid(name), {})
        return NodeStatus(name, "up", self._pid(name), answer["services"])

    def exec_argv(
        self,
        node: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command line that runs ``argv`` on a node, in the user's home."""
        self._known(node)
        pid = self._pid(node)
        if pid is None:
            raise control.NodeDownError(f"node {node} of lab {self.name} is down")
        if user != "root" and user not in JOB_USERS and user not in self._users():
            raise LabError(f"no user {user!r} in the lab; job users: {', '.join(JOB_USERS)}")
        home = f"{SHARED}/home/{user}" if user in JOB_USERS else "/"
        basic = {
            "PATH": _path(),
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
        }
        return control.enter_argv(
            pid,
            [cgroups.entry(group) for group in cgroups.make(self.name, node)],
            argv,
            user=user,
            directory=home,
            environment={**basic, **(environment or {})},
        )

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        check: bool = True,
        timeout_s: float | None = 60.0,
        input: str | None = None,  # noqa: A002
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a node and returns its output.

        Raises :class:`LabError` when the node is down and, with ``check``, when the command
        fails; :class:`subprocess.TimeoutExpired` after ``timeout_s`` (the command is then killed).
        """
        done = subprocess.run(
            self.exec_argv(node, argv, user=user, environment=environment),
            capture_output=True,
            text=True,
            errors="replace",
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            timeout=timeout_s,
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
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the login node as a job user."""
        return self.exec(CONTROLLER, argv, user=user, check=check, timeout_s=timeout_s)

    def host_path(self, node: str, path: str) -> Path:
        """Where a file of a node lies for this machine: below /var, /shared and /etc."""
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

    def _known(self, node: str) -> None:
        if not self.exists():
            raise LabError(f"lab {self.name} is not up (fabricctl lab up --name {self.name})")
        if node not in self.spec.all_nodes:
            raise LabError(
                f"no node {node!r} in lab {self.name}; there are: {', '.join(self.spec.all_nodes)}"
            )

    def _users(self) -> set[str]:
        return {line.split(":")[0] for line in (self.paths.etc / "passwd").open()}

    def _pid(self, name: str) -> int | None:
        return control.init_pid(self.paths.node(name).control)

    def _ask(
        self, name: str, request: Mapping[str, Any], timeout_s: float = 15.0
    ) -> dict[str, Any]:
        return control.ask(self.paths.node(name).control, request, timeout_s)

    # Lock ------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lab's lock: two commands that change one lab do it one after the other."""
        while True:
            BASE.mkdir(parents=True, exist_ok=True, mode=0o755)
            try:
                fd = os.open(self.paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # a `down` took the directory away between the two lines
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A `down` may have removed the file while we waited: then the lock is nobody's.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == self.paths.lock.stat().st_ino:
                    break
            os.close(fd)
        try:
            yield
        finally:
            os.close(fd)


def preflight() -> None:
    """Raises :class:`SystemRefusedError` in one sentence when the lab cannot work here."""
    if os.geteuid() != 0:
        raise SystemRefusedError("lab: needs root: it makes namespaces, mounts and bridges")
    missing = sorted({package for tool, package in _TOOLS.items() if not _which(tool)})
    if missing:
        raise SystemRefusedError(f"lab: programs are missing: apt-get install {' '.join(missing)}")


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=_path())


def _path() -> str:
    """PATH inside the nodes: the environment that fabricctl runs from, then the system's."""
    return f"{Path(sys.executable).parent}:{_PATH}"


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
    trees = cgroups.hierarchies()
    if len(trees) == 1 and trees[0].v2:
        return {"": ""}
    return {tree.mount.name: ",".join(tree.controllers) for tree in trees if not tree.v2}


def _services(node: str, site: Site | None) -> tuple[Service, ...]:
    sbin = "/usr/sbin"
    munged = Service(
        "munged",
        (f"{sbin}/munged", "-F", "--num-threads=2"),
        user="munge",
        wait_for="/run/munge/munge.socket.2",
    )
    if node == CONTROLLER:
        return (munged, Service("slurmctld", (f"{sbin}/slurmctld", "-D"), user="slurm"))
    slurmd = Service("slurmd", (f"{sbin}/slurmd", "-D"))
    return (munged, slurmd, *(site.services() if site else ()))


def _is_fit(state: str | None) -> bool:
    """sinfo's short states of a node that answers and takes jobs."""
    return state in ("idle", "mix", "alloc", "comp")


def _tmpfs(path: Path, size: str, mode: str) -> None:
    path.mkdir(exist_ok=True)
    if not kernel.is_mount(path):
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("fabricctl-lab", path, "tmpfs", flags, f"size={size},mode={mode}")


def _await_ready(name: str, ready: int, console: Path) -> None:
    with os.fdopen(ready) as stream:
        line = stream.readline().strip()
    if line != "ready":
        said = line.removeprefix("error ") or "its init died"
        raise LabError(f"node {name} did not start: {said} (see {console})")
