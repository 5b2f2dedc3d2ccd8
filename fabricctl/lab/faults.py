"""Putting faults in and healing them, each logged with the time at which it took effect."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fabricctl.errors import FabricError, LabError, UsageError
from fabricctl.lab import diskfull, freezer, ports
from fabricctl.lab.control import NodeDownError
from fabricctl.lab.kinds import Fault
from fabricctl.lab.lock import locked
from fabricctl.lab.nodes import Nodes
from fabricctl.lab.ports import Port
from fabricctl.lab.registry import InForce, Registry
from fabricctl.lab.rtnl import Rtnl
from fabricctl.lab.site import Site
from fabricctl.lab.spec import MANAGEMENT
from fabricctl.lab.stamp import Stamp, Stopwatch
from fabricctl.lab.vclock import make_clock

_PortKey = tuple[str, str]  # node, interface


class Faults:
    """The faults of one lab."""

    def __init__(self, nodes: Nodes, site: Callable[[], Site | None]) -> None:
        """``site`` finds what a healed node has to run."""
        self._nodes = nodes
        self._spec = nodes.spec
        self._paths = nodes.paths
        self._site = site
        self.registry = Registry(nodes.paths)

    # Putting in and healing ------------------------------------------------------------------

    def begin(self, fault: Fault, *, for_s: float | None = None, cause: str = "user") -> Stamp:
        """Puts a fault in; with ``for_s`` it heals by itself, so long after it took effect.

        Raises :class:`LabError` when it is in force already or cannot be put in: nothing is
        changed then.
        """
        # What keeps a fault going is started, and waited for, before the fault begins.
        actor = _Actor(self._spec.name, fault.id) if _needs_actor(fault, for_s) else None
        try:
            with locked(self._paths):
                stamp = self._begin(fault, for_s, cause, actor)
            if actor:
                actor.go()
        finally:
            if actor:
                actor.let_go()
        return stamp

    def _begin(
        self, fault: Fault, for_s: float | None, cause: str, actor: "_Actor | None"
    ) -> Stamp:
        if self.registry.get(fault.id):
            raise LabError(f"fault {fault.id} is in force already: heal it first")
        self._check_link_rate(fault)
        item = InForce(fault, acting=not fault.flaps, actor=actor.identity if actor else None)
        before = self._wanted_ports()
        # Recorded before it is done: whoever heals a half-done fault sets everything right.
        self.registry.put(item)
        try:
            stamp, detail = self._apply(item, before)
        except BaseException:
            self.registry.remove(fault.id)
            self._set_ports(None, self._wanted_ports())
            raise
        until = None if for_s is None else stamp.mono_ns + round(for_s * 1e9)
        self.registry.put(replace(item, begun=stamp, until_mono_ns=until))
        self.registry.log("fault", fault, stamp, cause, **detail)
        return stamp

    def heal(self, fault_id: str, *, cause: str = "user") -> Stamp:
        """Heals one fault. Raises :class:`LabError` when it is not in force."""
        with locked(self._paths):
            return self._heal(fault_id, cause)

    def _heal(self, fault_id: str, cause: str) -> Stamp:
        item = self.registry.get(fault_id)
        if item is None:
            there = ", ".join(each.fault.id for each in self.registry.all()) or "none"
            raise LabError(f"fault {fault_id} is not in force; in force: {there}")
        _stop_actor(item)
        before = self._wanted_ports()
        doubtful = item.begun is None or item.fault.flaps
        self.registry.put(replace(item, acting=False))
        stamp, detail = self._undo(item, None if doubtful else before)
        self.registry.remove(fault_id)
        self.registry.log("heal", item.fault, stamp, cause, **detail)
        return stamp

    def heal_all(self, *, cause: str = "user", already_locked: bool = False) -> list[str]:
        """Heals every fault, the youngest first; the ids. All are tried before an error is
        raised."""
        with contextlib.nullcontext() if already_locked else locked(self._paths):
            healed, failed = [], []
            for item in reversed(self.registry.all()):
                try:
                    self._heal(item.fault.id, cause)
                    healed.append(item.fault.id)
                except FabricError as error:
                    failed.append(f"{item.fault.id}: {error}")
        if failed:
            raise LabError("not healed: " + "; ".join(failed))
        return healed

    def edge(self, fault_id: str, acting: bool) -> Stamp | None:
        """One edge of a flapping fault; None when the fault was healed meanwhile."""
        with locked(self._paths):
            item = self.registry.get(fault_id)
            if item is None:
                return None
            before = self._wanted_ports()
            self.registry.put(replace(item, acting=acting))
            stamp = self._set_ports(before, self._wanted_ports())
            self.registry.log("down" if acting else "up", item.fault, stamp, "flap")
            return stamp

    def reset_ports(self) -> None:
        """Sets every port as the faults in force want it, whatever it was."""
        self._set_ports(None, self._wanted_ports())

    def rx_rate_bit_per_s(self, node: str, interface: str) -> int:
        """The rate at which a node's port drains towards it, 0: it has no limit."""
        return self._wanted_ports()[node, interface].rx_rate_bit_per_s

    def _check_link_rate(self, fault: Fault) -> None:
        if fault.kind == "cross" and not fault.options["rate"]:
            node, interface = fault.target
            if not self.rx_rate_bit_per_s(node, interface):
                raise UsageError(
                    "fault cross: the link has no rate at which a queue could build up: "
                    "give --rate, here or to lab up"
                )

    # Ports -----------------------------------------------------------------------------------

    def _wanted_ports(self) -> dict[_PortKey, Port]:
        effects: dict[_PortKey, list[ports.Effect]] = {}
        for item in self.registry.all():
            if item.acting:
                for key, effect in item.fault.effects(self._spec).items():
                    effects.setdefault(key, []).append(effect)
        return {
            (node, interface): ports.wanted(
                0 if interface == MANAGEMENT else self._spec.rate_bit_per_s,
                effects.get((node, interface), ()),
            )
            for interface in self._spec.interfaces
            for node in self._spec.all_nodes
        }

    def _set_ports(
        self, before: Mapping[_PortKey, Port] | None, after: Mapping[_PortKey, Port]
    ) -> Stamp:
        """Changes what differs; with ``before`` None everything is set."""
        changed = [key for key in after if before is None or before[key] != after[key]]
        stamps: list[Stamp] = []
        for interface in dict.fromkeys(interface for _, interface in changed):
            with Rtnl(self._paths.switch_netns(interface)) as net:
                for key in changed:
                    if key[1] == interface:
                        was = before[key] if before else None
                        stamps.append(ports.change(net, key[0], was, after[key]))
        return stamps[0].until(stamps[-1]) if stamps else Stopwatch().stop()

    # What each kind does ---------------------------------------------------------------------

    def _apply(
        self, item: InForce, before: Mapping[_PortKey, Port]
    ) -> tuple[Stamp, dict[str, Any]]:
        fault, after = item.fault, self._wanted_ports()
        if fault.kind == "node-kill":
            stamp = self._nodes.kill(fault.target[0])
            self._set_ports(before, after)  # a dead node does not answer pings
            return stamp, {}
        if fault.kind == "power-off":
            stamp = self._set_ports(before, after)
            self._nodes.kill(fault.target[0])
            return stamp, {}
        if fault.kind in _PROCESS_FAULTS:
            return _PROCESS_FAULTS[fault.kind][0](self, fault)
        return self._set_ports(before, after), {}

    def _undo(
        self, item: InForce, before: Mapping[_PortKey, Port] | None
    ) -> tuple[Stamp, dict[str, Any]]:
        fault = item.fault
        if fault.kind in _PROCESS_FAULTS:
            try:
                return _PROCESS_FAULTS[fault.kind][1](self, fault)
            except NodeDownError:
                return Stopwatch().stop(), {"note": "the node is down"}
        stamp = self._set_ports(before, self._wanted_ports())
        if fault.kind in ("node-kill", "power-off"):
            watch = Stopwatch()
            self._nodes.start([fault.target[0]], self._site())
            return watch.stop(), {}
        return stamp, {}

    def _freeze(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        watch = Stopwatch()
        freezer.freeze(self._paths, fault.target[0])
        return watch.stop(), {}

    def _thaw(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        watch = Stopwatch()
        freezer.thaw(self._paths, fault.target[0])
        return watch.stop(), {}

    def _kill_service(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        node, service = fault.target
        answer = self._nodes.ask(node, {"do": "kill", "service": service, "signal": 9})
        return Stamp.of(answer["stamp"]), {}

    def _start_service(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        node, service = fault.target
        watch = Stopwatch()
        self._nodes.ask(node, {"do": "start", "service": service})
        return watch.stop(), {}

    def _stop_processes(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        return self._signal(fault, signal.SIGSTOP)

    def _continue_processes(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        try:
            return self._signal(fault, signal.SIGCONT)
        except NodeDownError:
            raise
        except LabError:
            return Stopwatch().stop(), {"note": "no such process is left"}

    def _signal(self, fault: Fault, number: int) -> tuple[Stamp, dict[str, Any]]:
        node, match = fault.target
        answer = self._nodes.ask(node, {"do": "signal", "match": match, "signal": number})
        return Stamp.of(answer["stamp"]), {"pids": answer["pids"]}

    def _fill(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        watch = Stopwatch()
        diskfull.fill(self._filesystem(fault))
        return watch.stop(), {}

    def _empty(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        watch = Stopwatch()
        diskfull.restore(self._filesystem(fault))
        return watch.stop(), {}

    def _filesystem(self, fault: Fault) -> Path:
        if fault.kind == "shared-full":
            return self._paths.shared
        node = self._paths.node(fault.target[0])
        return {"spool": node.spool, "disk": node.disk}[fault.target[1]]

    def _set_clock(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        file = self._paths.node(fault.target[0]).clock
        new = file.with_suffix(".new")
        new.write_text(make_clock(fault.options, time.monotonic_ns()).text())
        new.chmod(0o644)
        watch = Stopwatch()
        new.replace(file)
        return watch.stop(), {}

    def _reset_clock(self, fault: Fault) -> tuple[Stamp, dict[str, Any]]:
        watch = Stopwatch()
        self._paths.node(fault.target[0]).clock.unlink(missing_ok=True)
        return watch.stop(), {}


_Step = Callable[[Faults, Fault], tuple[Stamp, dict[str, Any]]]
_PROCESS_FAULTS: Mapping[str, tuple[_Step, _Step]] = {
    "freeze": (Faults._freeze, Faults._thaw),
    "kill": (Faults._kill_service, Faults._start_service),
    "stop": (Faults._stop_processes, Faults._continue_processes),
    "disk-full": (Faults._fill, Faults._empty),
    "shared-full": (Faults._fill, Faults._empty),
    "clock": (Faults._set_clock, Faults._reset_clock),
}


def _needs_actor(fault: Fault, for_s: float | None) -> bool:
    return for_s is not None or fault.flaps or fault.kind == "cross"


class _Actor:
    """The process that keeps a fault going or heals it in time (:mod:`fabricctl.lab.actor`)."""

    def __init__(self, lab: str, fault_id: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fabricctl.lab.actor", lab, fault_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise LabError(f"fault {fault_id}: its actor did not start")
        self.identity = (self._process.pid, start_ticks(self._process.pid) or 0)

    def go(self) -> None:
        """The fault is in: act."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    def let_go(self) -> None:
        """An actor that was not told to go ends when its pipe closes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        # It goes on without us; whoever ends last collects it.
        self._process.returncode = 0


def _stop_actor(item: InForce) -> None:
    """Ends what keeps a fault going, unless that is this very process. The caller holds the lock:
    the actor is not in the middle of a change."""
    if item.actor is None or item.actor[0] == os.getpid():
        return
    pid, ticks = item.actor
    for _ in range(500):
        if start_ticks(pid) != ticks:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    raise LabError(f"fault {item.fault.id}: its actor {pid} does not end")


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
