"""Keepers of several nodes on one machine, for tests and benchmarks."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fabricctl import fields
from fabricctl.state.ckpt.client import Client, Found
from fabricctl.state.ckpt.link import Link

KEY = b"k" * 32
PROGRAM = """
import json, signal, sys, os, threading, time
from pathlib import Path
from fabricctl.membership import Member
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.keeper import Keeper
from fabricctl.state.ckpt.remote import Remote
where, node, nodes, job, quota, disk, groups, hold_s, copy_s = sys.argv[1:10]
hold = Remote._hold
def slowly(*given):
    if (Path(where) / f"still.{node}").exists():
        (Path(where) / f"stands.{node}.{threading.get_ident()}").touch()
        threading.Event().wait()  # as a node without power: not a word more
    time.sleep(float(copy_s))
    hold(*given)
    (Path(where) / f"held.{node}.{time.monotonic_ns()}").touch()
Remote._hold = slowly
if hold_s:  # as the node service starts it
    from fabricctl.node import keepers
    signal.pthread_sigmask(signal.SIG_BLOCK, keepers.SIGNALS)
keeper = Keeper(Assignment(int(job), os.getuid(), b"k" * 32, node, tuple(nodes.split(",")),
    Path(where) / node, int(quota), 24000, 6000, lambda name: ["127.0.0.1"],
    Path(disk) / node if disk else None, json.loads(groups),
    lambda: Member.read(Path(where) / "job" / "envelope", 1).nodes))
if not hold_s:
    keeper.serve()
threading.Thread(target=keeper.serve, daemon=True).start()
keepers._hold_on(keeper, float(hold_s), (Path(where) / "job").exists, threading.Event())
keeper.end()
"""


class KeeperSet:
    """One process a node; use as a context manager."""

    def __init__(
        self,
        where: Path,
        nodes: int = 3,
        quota_bytes: int = 1 << 30,
        disk: Path | None = None,
        groups: Mapping[str, Mapping[str, str]] | None = None,
        hold_s: float | None = None,
        copy_s: float = 0.0,
    ) -> None:
        """``copy_s``: what each copy to another node takes longer."""
        self.where, self._hold_s, self._copy_s = where, hold_s, copy_s
        self._disk, self._groups = disk, groups or {}
        self.nodes = [f"n{number}" for number in range(nodes)]
        self._quota = quota_bytes
        self._job = os.getpid()  # its ports are its own
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str, *, wait: bool = True) -> None:
        argv = [sys.executable, "-c", PROGRAM, str(self.where), node, ",".join(self.nodes)]
        path = self.where / node
        path.unlink(missing_ok=True)
        if self._disk is not None:
            (self._disk / node).mkdir(parents=True, exist_ok=True)
        argv += [str(self._job), str(self._quota)]
        argv += [str(self._disk or ""), json.dumps(self._groups), str(self._hold_s or "")]
        argv += [str(self._copy_s)]
        self.processes[node] = subprocess.Popen(argv)
        if wait:
            self._wait(node)

    def _wait(self, node: str) -> None:
        deadline = time.monotonic() + 120
        while not _answers(self.where / node):
            assert time.monotonic() < deadline, f"keeper of {node} did not start"
            time.sleep(0.01)

    def stand_still(self, node: str) -> None:
        """It takes no copy to its end."""
        (self.where / f"still.{node}").touch()

    def client(self, node: str, rank: int = 0, ranks: int = 1) -> Client:
        """A rank of a node."""
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(self.where / node))
        return Client(Link.local(made), "main", rank, ranks)

    def found(self, node: str) -> list[Found]:
        """What a rank there would be offered."""
        client = self.client(node)
        with contextlib.closing(client.link):
            return client.find("")

    def kill(self, node: str) -> None:
        """The node is lost with all it held."""
        self.processes[node].kill()
        self.processes.pop(node).wait()

    def end_job(self) -> None:
        """As the node services of all that live do it; with ``hold_s``."""
        shutil.rmtree(self.where / "job")
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)

    def requeue(self, nodes: list[str]) -> None:
        """The job is back, on these nodes."""
        self.nodes = nodes
        self._make_job()
        for node in nodes:
            if node in self.processes:
                self.processes[node].send_signal(signal.SIGUSR2)
            else:
                self.start(node)

    def _make_job(self) -> None:
        new = self.where / "new"
        new.mkdir()
        given = {"key": KEY.hex(), "nodes": ",".join(self.nodes), "node": self.nodes[0]}
        (new / "envelope").write_text(fields.encode(given))
        new.rename(self.where / "job")

    def __enter__(self) -> "KeeperSet":
        self._make_job()
        for node in self.nodes:
            self.start(node, wait=False)
        for node in self.nodes:
            self._wait(node)
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self.processes):
            self.kill(node)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.connect(str(path))
        except OSError:
            return False
    return True
