"""What lies in ``run_dir/paths`` (fabricctl/layout.py): making, reading and removing it."""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from fabricctl import fields, layout
from fabricctl.errors import DataError, NotFoundError
from fabricctl.paths import verbs

MAX_BYTES = 65_536


class PathsFiles:
    """Names below ``run_dir/paths``."""

    def __init__(self, run_dir: Path) -> None:
        self.node = layout.NodeFiles(run_dir)
        self.leases = self.node.paths

    def job_dir(self, job: int) -> Path:
        return self.node.paths_dir(job)

    def state(self, job: int) -> Path:
        return self.job_dir(job) / "state"

    def env(self, job: int) -> Path:
        return self.job_dir(job) / "env"

    def events(self, job: int) -> Path:
        return self.node.path_events(job)

    def control(self, job: int) -> Path:
        return self.job_dir(job) / "control"

    def make_node(self) -> None:
        """``run_dir/paths``, which tells steps that this node has link failover. Never raises."""
        with contextlib.suppress(OSError):
            self.leases.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.leases.chmod(0o755)

    def remove_node(self) -> None:
        """The same, where no job is left in it. Never raises."""
        with contextlib.suppress(OSError):
            if any(path.suffix == ".lease" for path in self.leases.iterdir()):
                return
            (self.leases / "lock").unlink(missing_ok=True)
            (self.leases / "env").unlink(missing_ok=True)
            self.leases.rmdir()

    def set_node_env(self, text: str) -> None:
        """What leads tasks on this node onto the rails where nothing looks after their job's paths:
        the job's other nodes connect to these alone. Never raises."""
        with contextlib.suppress(OSError):
            fresh = self.leases / ".env"
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.replace(self.leases / "env")

    def write_unwanted(self, job: int) -> None:
        """Tells the steps of a job that the site wants none for it. Never raises."""
        if self.leases.is_dir():
            with contextlib.suppress(OSError):
                self.make(job)
                write_off(self.state(job), job, "this site wants no link failover for the job")

    def make(self, job: int) -> None:
        """The job's directory; raises OSError."""
        self.make_node()
        self.job_dir(job).mkdir(mode=0o755, exist_ok=True)
        self.job_dir(job).chmod(0o755)

    def remove(self, job: int) -> None:
        """What is left of a job; never raises."""
        shutil.rmtree(self.job_dir(job), ignore_errors=True)

    def drained(self) -> dict[str, str]:
        """Rails that are out for maintenance, by interface, and what was said of them."""
        try:
            text = (self.leases / "drained").read_text(errors="replace")
        except OSError:
            return {}
        lines = (line.partition(" ") for line in text.splitlines() if line.strip())
        return {name: said for name, _, said in lines}

    def set_drained(self, rails: Mapping[str, str]) -> None:
        """Holds for jobs that begin from now on, until the node boots. Raises OSError."""
        fresh = self.leases / ".drained"
        fresh.write_text("".join(f"{name} {said}\n" for name, said in rails.items()))
        fresh.chmod(0o644)
        fresh.replace(self.leases / "drained")

    def change_env(self, job: int, variables: Mapping[str, str]) -> None:
        """What later steps of a job are told of InfiniBand and RoCE ports. Never raises."""
        for path in (self.env(job), self.env(job).with_name(".env")):
            with contextlib.suppress(OSError):
                text = verbs.changed_text(path.read_text(), variables)
                fresh = path.with_name(".env.new")
                fresh.write_text(text)
                fresh.chmod(0o644)
                fresh.replace(path)

    def add_event(self, job: int, event: str, what: str) -> None:
        """One that the node service saw, among fabric-pathd's. Never raises."""
        line = {
            "event": event,
            "time_mono_ns": str(time.clock_gettime_ns(time.CLOCK_MONOTONIC)),
            "time_real_ns": str(time.clock_gettime_ns(time.CLOCK_REALTIME)),
            "what": what,
        }
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self.events(job), flags)
            try:
                os.write(fd, (fields.encode(line, ";") + "\n").encode())
            finally:
                os.close(fd)

    def jobs(self) -> list[int]:
        """Jobs that have a directory, lowest first."""
        try:
            names = [path.name for path in self.leases.iterdir() if path.is_dir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isdecimal())


def read_state(path: Path) -> dict[str, str]:
    """The ``state`` file; raises :class:`NotFoundError` or :class:`DataError`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from None
    try:
        state = fields.decode(data.decode())
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8") from None
    if state.get("v") != "1":
        raise DataError(f"{path}: version {state.get('v')!r}, this side knows 1")
    return state


def rail_names(state: Mapping[str, str]) -> list[str]:
    """The interfaces of a job's rails, as its fabric-pathd counts them; of what :func:`read_state`
    gives."""
    return [text.split()[0] for key, text in state.items() if key.startswith("rail") and text]


def write_off(path: Path, job: int, why: str) -> None:
    """A ``state`` that says why there is no fabric-pathd; raises OSError."""
    text = fields.encode({"v": "1", "state": "off", "job": str(job), "why": why})
    fresh = path.with_name(".state.new")
    fresh.write_text(text + "\n")
    fresh.replace(path)
