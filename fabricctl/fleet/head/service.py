"""fabricd: takes what nodes report, asks Slurm now and then, answers commands on its host.

One thread takes reports; one asks Slurm; each question has a short-lived one of its own. It runs
without privileges: it can change nothing, and what it knows is in memory alone.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fabricctl import fields, wire
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError, SlurmError, SystemRefusedError
from fabricctl.fleet import access
from fabricctl.fleet.head import views
from fabricctl.fleet.head.table import Table
from fabricctl.fleet.metrics import render
from fabricctl.fleet.overview import overview
from fabricctl.slurm.model import Rights, Slurm

RECEIVE_BYTES = 32 << 20  # a second of reports of ten thousand nodes is 8 MB
MAX_CLIENTS = 32
CLIENT_S = 10.0
CACHE_S = 0.5  # answers of one role are made at most so often
RIGHTS_S = 300.0


class Head:
    """Sockets and threads around a :class:`Table`."""

    def __init__(self, config: Config, key: bytes, open_slurm: Callable[[], Slurm]) -> None:
        self._config = config
        self._key = key
        self._open_slurm = open_slurm
        self.table = Table(config.head.interval_s, config.head.max_reports_per_s)
        self._lock = threading.Lock()  # of the table
        self._view = views.SlurmView(trouble="it was not asked yet")
        self._took_s = 0.0
        self._rights: Mapping[str, Rights] = {}
        self._slurm_user = "slurm"
        self._stop = threading.Event()
        self._clients = threading.Semaphore(MAX_CLIENTS)
        self._cache: dict[tuple[str, str], tuple[float, bytes]] = {}
        self._udp = self._open_udp()
        try:
            self._listener = self._open_listener(config.head.socket)
        except SystemRefusedError:
            self._udp.close()
            raise

    @property
    def port(self) -> int:
        return int(self._udp.getsockname()[1])

    def _open_udp(self) -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            made.bind(("::", self._config.head.port))
        except OSError as error:
            made.close()
            raise SystemRefusedError(f"port {self._config.head.port}: {error.strerror}") from None
        return made

    @staticmethod
    def _open_listener(path: Path) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                try:
                    other.connect(str(path))
                    raise SystemRefusedError(f"{path}: another fabricd answers there")
                except (FileNotFoundError, ConnectionRefusedError):
                    path.unlink(missing_ok=True)
            made.bind(str(path))
            path.chmod(0o666)  # who asks is told by the kernel, and sees what they may
            made.listen(MAX_CLIENTS)
        except (OSError, SystemRefusedError) as error:
            made.close()
            if isinstance(error, SystemRefusedError):
                raise
            raise SystemRefusedError(f"{path}: {error.strerror}") from None
        return made

    def run(self) -> None:
        """Until :meth:`stop`."""
        work = (self._ask_slurm, self._answer)
        threads = [threading.Thread(target=each, daemon=True) for each in work]
        for each in threads:
            each.start()
        self._udp.settimeout(0.5)
        while not self._stop.is_set():
            try:
                datagram, sender = self._udp.recvfrom(wire.MAX_BYTES + 1)
            except OSError:
                continue
            self._take(datagram, sender)
        for made in (self._udp, self._listener):
            made.close()
        self._config.head.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    # Reports

    def _take(self, datagram: bytes, sender: Any) -> None:
        try:
            given = wire.open_sealed(datagram, self._key)
            with self._lock:
                node, seq = self.table.take(given, time.monotonic())
                wanted_ms = round(self.table.wanted_s() * 1000)
        except DataError:
            with self._lock:
                self.table.refused += 1
            return
        answer = {"kind": "ack", "node": node, "to": str(seq), "interval_ms": str(wanted_ms)}
        with contextlib.suppress(OSError):
            self._udp.sendto(wire.seal(answer, self._key), sender)

    # Slurm

    def _ask_slurm(self) -> None:
        slurm: Slurm | None = None
        rights_s = -RIGHTS_S
        while not self._stop.is_set():
            begin_s = time.monotonic()
            try:
                slurm = slurm or self._open_slurm()
                conf = slurm.configuration()
                self._slurm_user = conf.get("SlurmUser", "slurm").partition("(")[0]
                view = views.SlurmView(slurm.nodes(), slurm.jobs(), conf.get("ClusterName", "?"),
                                       time.monotonic(), version=slurm.version.text)  # fmt: skip
                if begin_s >= rights_s + RIGHTS_S:
                    rights_s = begin_s
                    # Without an accounting nobody has more rights than Unix groups give.
                    with contextlib.suppress(SlurmError):
                        self._rights = slurm.rights()
            except FabricError as error:
                old = self._view
                view = views.SlurmView(old.nodes, old.jobs, old.cluster, old.at_s, str(error),
                                       old.version)  # fmt: skip
                slurm = None
            self._took_s = time.monotonic() - begin_s
            self._view = view
            with self._lock:
                self.table.forget(frozenset(n.name for n in view.nodes), time.monotonic())
            self._stop.wait(max(0.1, self._config.head.slurm_s - self._took_s))

    # Questions

    def _answer(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            if not self._clients.acquire(blocking=False):
                client.close()  # who comes too often is told to come again by that
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(CLIENT_S)
                data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED,
                                         struct.calcsize("3i"))  # fmt: skip
                uid = struct.unpack("3i", data)[1]
                request = fields.decode(client.recv(4096).decode(errors="replace"))
                client.sendall(self.answer(request.get("ask", ""), uid))
        except (OSError, FabricError):
            return
        finally:
            self._clients.release()

    def answer(self, ask: str, uid: int) -> bytes:
        """``snapshot``, ``status`` (JSON) or ``metrics`` (OpenMetrics), for that user."""
        caller = access.who(uid, self._rights, self._config.access, self._slurm_user)
        key = (ask, "" if ask != "snapshot" or caller.role != "user" else caller.user)
        known = self._cache.get(key)
        now_s = time.monotonic()
        if known is not None and now_s < known[0] + CACHE_S and not (key[1] and caller.accounts):
            return known[1]
        with self._lock:
            body = self._made(ask, caller, now_s)
        if len(self._cache) > MAX_CLIENTS:
            self._cache.clear()
        self._cache[key] = (now_s, body)
        return body

    def _made(self, ask: str, caller: access.Who, now_s: float) -> bytes:
        view = self._view
        if ask == "metrics":
            links = views.link_findings(self.table, now_s)
            found = None if view.trouble else overview(view.nodes, view.jobs, more=links)
            return render(found, view.nodes, self._took_s, self._rails(now_s)).encode()
        if ask == "status":
            return json.dumps(views.status(self.table, view, now_s)).encode()
        if ask == "snapshot":
            made = views.snapshot(self.table, view, caller, self._config.access, now_s)
            return json.dumps(made, separators=(",", ":")).encode()
        return json.dumps({"error": f"{ask[:40]!r} is not known"}).encode()

    def _rails(self, now_s: float) -> Mapping[tuple[str, str, str], float]:
        states, rx, tx = views.rail_totals(self.table, now_s)
        told = views.reports(self.table, self._view, now_s)
        found: dict[tuple[str, str, str], float] = {}
        for state, count in states.items():
            found["fabricctl_rails", "state", state] = count
        found["fabricctl_rail_bytes_per_second", "direction", "received"] = rx
        found["fabricctl_rail_bytes_per_second", "direction", "sent"] = tx
        for word in ("fresh", "stale", "never"):
            found["fabricctl_node_reports", "state", word] = float(str(told[word]))
        return found


def ask(path: Path, what: str, timeout_s: float = CLIENT_S) -> bytes:
    """What fabricd on this host answers; raises :class:`SystemRefusedError`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            made.settimeout(timeout_s)
            made.connect(str(path))
            made.sendall(fields.encode({"ask": what}).encode())
            made.shutdown(socket.SHUT_WR)
            pieces = []
            while piece := made.recv(1 << 20):
                pieces.append(piece)
    except OSError as error:
        raise SystemRefusedError(f"{path}: no fabricd answers: {error.strerror or error}") from None
    if not pieces:
        raise SystemRefusedError(f"{path}: fabricd gave no answer: it has too many to answer")
    return b"".join(pieces)


def serve(config: Config, key: bytes, open_slurm: Callable[[], Slurm]) -> None:
    """Until SIGTERM."""
    if os.geteuid() == 0 and not os.environ.get("FABRICD_AS_ROOT"):
        raise SystemRefusedError("fabricd needs no privileges: start it as a user without any")
    head = Head(config, key, open_slurm)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: head.stop())
    head.run()
