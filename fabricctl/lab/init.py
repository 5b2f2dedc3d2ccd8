"""The first process of a lab node: enters its namespaces, builds its tree, looks after services.

Started by the lab as ``python -m fabricctl.lab.init BOOT_JSON READY_FD``. Its death is the node's
death: the kernel then ends every process of the node's pid namespace.

It answers on the socket ``control``: one line of JSON asks, one line answers.

================================================ =============================================
``{"do": "status"}``                             services: pid, up, stopped, restarts, last status
``{"do": "start", "service": S}``                starts S if it does not run, or continues it
``{"do": "kill", "service": S, "signal": N}``    and leaves it dead unless it restarts itself
``{"do": "signal", "match": TEXT, "signal": N}`` to all whose command line holds TEXT
================================================ =============================================
"""

import contextlib
import ctypes
import grp
import json
import os
import pwd
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fabricctl.errors import FabricError, LabError
from fabricctl.lab import control, kernel, nodefs
from fabricctl.lab.boot import Boot, Service
from fabricctl.lab.freezer import process_state
from fabricctl.lab.stamp import Stopwatch

_RESTART_DELAY_S = 0.5  # "restarted within 1 s"; systemd's own default is 0.1 s
_ENVIRONMENT = {"LANG": "C.UTF-8", "HOME": "/root", "USER": "root", "SHELL": "/bin/bash"}


@dataclass
class _Running:
    """A service and what became of it."""

    service: Service
    pid: int = 0
    held: bool = False  # ended on purpose: not to be restarted
    restarts: int = -1
    exit_status: int | None = None
    due_mono_s: float | None = None  # when to start it again
    started_mono_ns: int = 0

    def report(self) -> dict[str, Any]:
        return {
            "pid": self.pid or None,
            "up": bool(self.pid),
            "stopped": bool(self.pid) and process_state(self.pid) in "Tt",
            "restarts": max(0, self.restarts),
            "exit_status": self.exit_status,
            "started_mono_ns": self.started_mono_ns,
        }


@dataclass
class Init:
    """Process 1 of a node, after its namespaces are made."""

    boot: Boot
    path: str
    running: dict[str, _Running] = field(default_factory=dict)

    def start_all(self) -> None:
        """Starts the services in their order. Raises :class:`LabError` when one does not come."""
        self.running = {item.name: _Running(item) for item in self.boot.services}
        for item in self.running.values():
            self.start(item)

    def start(self, item: _Running) -> None:
        item.held, item.due_mono_s = False, None
        if item.pid:
            os.kill(item.pid, signal.SIGCONT)  # it may have been stopped
            return
        item.pid = self._spawn(item.service)
        item.restarts += 1
        item.started_mono_ns = time.monotonic_ns()
        deadline = time.monotonic() + item.service.wait_s
        wanted = item.service.wait_for
        while wanted and not Path(wanted).exists():
            self.reap()
            if not item.pid or time.monotonic() > deadline:
                raise LabError(f"{item.service.name} did not come up: see /var/log of the node")
            time.sleep(0.002)

    def _spawn(self, service: Service) -> int:
        log = os.open(
            f"/var/log/{service.name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        )
        if service.wait_for:
            Path(service.wait_for).unlink(missing_ok=True)
        pid = os.fork()
        if pid:
            os.close(log)
            return pid
        try:
            self._become(service, log)
        except BaseException as error:  # a child of init must never come back
            os.write(2, f"{service.name}: {error}\n".encode())
        os._exit(127)

    def _become(self, service: Service, log: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        user = pwd.getpwnam(service.user)
        if user.pw_uid != 0:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        if service.sandbox is not None:
            service.sandbox.enter()
        os.execve(  # noqa: S606
            service.argv[0], service.argv, {**_ENVIRONMENT, "PATH": self.path, **service.env}
        )

    def reap(self) -> None:
        """Collects whatever ended, orphans of the node included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for item in self.running.values():
                if item.pid == pid:
                    item.pid, item.exit_status = 0, os.waitstatus_to_exitcode(status)
                    if item.service.restart and not item.held:
                        item.due_mono_s = time.monotonic() + _RESTART_DELAY_S

    def restart_due(self) -> float | None:
        """Starts what is due again; seconds until the next one is, None for never."""
        waits: list[float] = []
        for item in self.running.values():
            if item.due_mono_s is None:
                continue
            wait_s = item.due_mono_s - time.monotonic()
            if wait_s <= 0:
                self.start(item)
            else:
                waits.append(wait_s)
        return min(waits, default=None)

    # Requests --------------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request's answer; raises :class:`LabError` for a wrong one."""
        what = request.get("do")
        if what == "status":
            self.reap()
            return {"services": {name: item.report() for name, item in self.running.items()}}
        if what == "start":
            self.start(self._named(request))
            return {}
        if what == "kill":
            return self._kill(self._named(request), int(request["signal"]))
        if what == "signal":
            return self._signal(str(request["match"]), int(request["signal"]))
        raise LabError(f"init: unknown request {what!r}")

    def _named(self, request: Mapping[str, Any]) -> _Running:
        name = request.get("service")
        if name not in self.running:
            raise LabError(f"no service {name!r} here; there are: {', '.join(self.running)}")
        return self.running[str(name)]

    def _kill(self, item: _Running, number: int) -> dict[str, Any]:
        if not item.pid:
            raise LabError(f"{item.service.name} does not run")
        item.held = not item.service.restart
        watch = Stopwatch()
        os.kill(item.pid, number)
        deadline = time.monotonic() + 2
        while item.pid and number == signal.SIGKILL and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.0002)
        return {"stamp": asdict(watch.stop())}

    def _signal(self, match: str, number: int) -> dict[str, Any]:
        pids = _matching(match)
        if not pids:
            raise LabError(f"no process whose command line holds {match!r}")
        watch = Stopwatch()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return {"pids": pids, "stamp": asdict(watch.stop())}


def _matching(match: str) -> list[int]:
    """Processes of this node, but for init itself, by their command line."""
    found: list[int] = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or path.name == "1":
            continue
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if match in words:
            found.append(int(path.name))
    return sorted(found)


def serve(init: Init, listener: socket.socket, wakeup: socket.socket) -> None:
    """For ever: collects the dead, restarts services, answers requests."""
    while True:
        wait_s = init.restart_due()
        ready, _, _ = select.select([listener, wakeup], [], [], wait_s)
        if wakeup in ready:
            wakeup.recv(4096)
        init.reap()
        if listener in ready:
            connection, _ = listener.accept()
            with connection:
                _serve_one(init.answer, connection)


def _serve_one(
    answer: Callable[[Mapping[str, Any]], dict[str, Any]], connection: socket.socket
) -> None:
    connection.settimeout(1)
    try:
        request = json.loads(connection.makefile().readline(65536) or "{}")
        try:
            reply = {"ok": True, **answer(request)}
        except (FabricError, OSError, KeyError, ValueError) as error:
            reply = {"ok": False, "error": str(error)}
        connection.sendall(json.dumps(reply).encode() + b"\n")
    except (OSError, ValueError) as error:
        print(f"init: request not answered: {error}", file=sys.stderr, flush=True)  # noqa: T201


# Becoming a node ---------------------------------------------------------------------------------


def _enter_namespaces(boot: Boot) -> None:
    for group in boot.cgroup_dirs:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    fd = os.open(boot.netns, os.O_RDONLY | os.O_CLOEXEC)
    kernel.setns(fd, kernel.CLONE_NEWNET)
    os.close(fd)
    kernel.unshare(
        kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWPID
    )
    kernel.unshare_mounts()


def _be_init(boot: Boot, ready: int) -> None:
    os.setsid()
    sys.stdin.close()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # The socket's owner tells everybody which process init is (SO_PEERCRED): no pid file.
    listener = control.listen(boot.state / "nodes" / boot.node / "control")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sethostname(boot.node.encode(), len(boot.node))
    nodefs.enter(
        boot.state, boot.node, list(boot.code), dict(boot.cgroup_mounts), list(boot.writable)
    )
    kernel.never_set_clocks()
    _own_directories()
    for directory in boot.directories:
        directory.make()
    for item in boot.mounts:
        item.make()
    _make_room_in_cgroup()
    init = Init(boot, os.environ["PATH"])
    init.start_all()
    with contextlib.suppress(OSError):  # the lab may have gone: that is no reason to stop
        os.write(ready, b"ready\n")
    os.close(ready)
    serve(init, listener, receiver)


def _own_directories() -> None:
    """What tmpfiles.d makes at the boot of a real machine."""
    for name, owner, mode in (
        ("/run/munge", "munge", 0o755),
        ("/run/slurm", "slurm", 0o755),
        ("/run/mysqld", "slurm", 0o755),
    ):
        path = Path(name)
        path.mkdir(exist_ok=True)
        os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid)
        path.chmod(mode)


def _make_room_in_cgroup() -> None:
    """Version 2 hands controllers down only from a group without processes (cgroups(7))."""
    top = Path("/sys/fs/cgroup")
    if not (top / "cgroup.controllers").exists():
        return
    leaf = top / "init.scope"
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text("1")
    for name in (top / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (top / "cgroup.subtree_control").write_text(f"+{name}")


def main() -> None:
    """Entry point: ``init BOOT_JSON READY_FD``."""
    os.umask(0o022)
    boot, ready = Boot.from_json(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    try:
        _enter_namespaces(boot)
        if os.fork():
            os._exit(0)
        _be_init(boot, ready)
    except (FabricError, OSError, KeyError) as error:
        print(f"init of {boot.node}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        with contextlib.suppress(OSError):
            os.write(ready, f"error {error}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    main()
