"""A compute node without Slurm: namespaces of its own with a node service in them.

Requests are written as the prolog and epilog write them; everything else is the real thing.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fabricctl import layout
from fabricctl.store import schema
from fabricctl.store.trace import Trace, open_trace

ROOT = Path(__file__).parents[2]
KEY = "ab" * 32
USERS = {"alice": 7001, "bob": 7002}
AGENT_UID = 6100
_SETUP = """
set -e
mount --make-rprivate /
mount -t tmpfs none /run
mount -t tmpfs -o size={spool} none /var/spool
mkdir -p /run/share /var/spool/fabricctl
chmod 1777 /run/share
cp /etc/passwd /run/passwd
printf '%s\\n' {passwd} >> /run/passwd
mount --bind /run/passwd /etc/passwd
printf '127.0.0.1 localhost n1 n2 n3\\n' > /run/hosts
mount --bind /run/hosts /etc/hosts
cp {toml} /run/fabricctl.toml
ip link set lo up
for rail in r0 r1; do
  ip link add $rail type veth peer name far-$rail
  ip link set $rail up
  ip link set far-$rail up
done
touch {ready}
while :; do sleep 1000 & wait; done
"""


class NodeBox:
    """Use as a context manager. Paths inside are reached below :attr:`root`."""

    def __init__(self, work: Path, spool: str = "16m", toml: str = "") -> None:
        text = (
            '[node]\nlog_file = "/run/log"\norphan_check_s = 5\n[rails]\ninterfaces = ["r*"]\n'
            f'[trace]\ndir = "/run/share"\ncollect_wait_s = 2\n{toml}'
        )
        (work / "box.toml").write_text(text)
        passwd = [f"{name}:x:{uid}:{uid}::/:/bin/sh" for name, uid in USERS.items()]
        passwd.append(f"fabric:x:{AGENT_UID}:{AGENT_UID}::/:/bin/false")
        self._script = _SETUP.format(
            spool=spool,
            passwd=" ".join(f"'{line}'" for line in passwd),
            toml=work / "box.toml",
            ready=work / "ready",
        )
        self._work = work
        self._init: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self.service: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "NodeBox":
        argv = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child"]
        self._init = subprocess.Popen([*argv, "--mount-proc", "bash", "-c", self._script])
        wait_for((self._work / "ready").exists, "the box is made")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        self._pid = int(children.read_text().split()[0])
        self.root = Path(f"/proc/{self._pid}/root")
        self.files = layout.NodeFiles(self.root / "run/fabricctl")
        self.spool = self.root / "var/spool/fabricctl"
        self.share = self.root / "run/share"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._init is not None
        self._init.kill()
        self._init.wait(10)
        if self.service is not None:
            self.service.wait(10)

    # Processes

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self._pid), "-m", "-n", "-p", "-i", *argv]

    def run(self, *argv: str) -> str:
        done = subprocess.run(self.command(*argv), check=True, capture_output=True, timeout=30)
        return done.stdout.decode()

    def serve(self, code: Path = ROOT) -> None:
        """Starts the node service, of the package below ``code``, and waits until it serves."""
        environ = {**os.environ, "FABRICCTL_CONFIG": "/run/fabricctl.toml", "PYTHONPATH": str(code)}
        argv = [sys.executable, "-m", "fabricctl.node.service"]
        serving = self.log().count("node: serving")
        self.service = subprocess.Popen(self.command(*argv), env=environ, cwd="/")
        wait_for(lambda: self.log().count("node: serving") > serving, "the service serves")

    def service_pid(self) -> int:
        """Inside the box."""
        return int(self.run("pgrep", "-o", "-f", "fabricctl.node.service").split()[0])

    def end_service(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.service is not None
        self.kill(self.service_pid(), number)
        self.service.wait(10)

    def agent_pid(self, job: int) -> int | None:
        """Inside the box; None when no agent of the job lives."""
        try:
            pid = int(self.files.agent_pid(job).read_text().split()[0])
            comm = (self.root / f"proc/{pid}/comm").read_text().strip()
        except (OSError, IndexError, ValueError):
            return None
        return pid if comm == "fabric-agent" else None

    def agents(self) -> list[int]:
        """All that live, whatever they belong to."""
        found = []
        for comm in self.root.glob("proc/[0-9]*/comm"):
            with contextlib.suppress(OSError):
                stat = (comm.parent / "stat").read_text().rpartition(")")[2].split()[0]
                if comm.read_text() == "fabric-agent\n" and stat != "Z":
                    found.append(int(comm.parent.name))
        return found

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        self.run("kill", f"-{int(number)}", str(pid))

    def log(self) -> str:
        try:
            return (self.root / "run/log").read_text()
        except OSError:
            return ""

    # What prolog and epilog do

    def start(
        self,
        job: int,
        user: str = "alice",
        nodes: str = "n1",
        extra: str = "",
        partition: str = "main",
    ) -> None:
        text = (
            f"job={job}\nuid={USERS[user]}\nuser={user}\nnodes={nodes}\nnode=n1\ncluster=box\n"
            f"partition={partition}\nenvelope=v=1;mode=on;key={KEY};spares=0;on_missing=warn{extra}\n"
        )
        self.put(f"{job}.start", text)

    def stop(self, job: int) -> None:
        self.put(f"{job}.stop", "")

    def put(self, name: str, text: str) -> None:
        (self.files.requests / name).write_text(text)

    # What there is to see

    def status(self, job: int) -> dict[str, str]:
        try:
            text = self.files.status(job).read_text()
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in text.splitlines())

    def wait_running(self, job: int) -> int:
        """The agent's pid, once it runs."""
        found: list[int] = []

        def runs() -> bool:
            pid = self.agent_pid(job)
            found[:] = [pid] if pid is not None else []
            return pid is not None and self.status(job).get("state") == "running"

        wait_for(runs, f"job {job} runs", 40)  # an agent that keeps dying waits up to 30 s
        return found[0]

    def wait_clean(self, timeout_s: float = 30) -> None:
        """Until nothing of any job is left on the node."""

        def clean() -> bool:
            files = self.files
            lists = (files.jobs, files.live_dir, files.requests, files.steps_dir, self.spool)
            return not self.agents() and not any(list(path.iterdir()) for path in lists)

        try:
            wait_for(clean, "nothing is left", timeout_s)
        except AssertionError:
            raise AssertionError(self.log() + self.run("find", "/run/fabricctl", "/var/spool"))

    @contextlib.contextmanager
    def trace(self, job: int, user: str = "alice", requeue: int = 0) -> Iterator[Trace]:
        with open_trace(layout.trace_file(self.share / user, job, requeue)) as trace:
            yield trace

    def notes(self, job: int, user: str = "alice") -> list[str]:
        """All notes of the job's trace, in time order."""
        with self.trace(job, user) as trace:
            return [row["text"].decode() for row in trace.table("n1", schema.NOTE)]


def wait_for(happens: Callable[[], object], what: str, timeout_s: float = 15) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline_s, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.02)


def available() -> bool:
    """Whether this process may make namespaces."""
    return os.geteuid() == 0 and shutil.which("unshare") is not None
