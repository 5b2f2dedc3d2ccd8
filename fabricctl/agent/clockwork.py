"""The job clock inside the agent: when it runs, what it records, and that it never hurts.

numpy is imported here only when an allocation of several nodes has the clock switched on.
"""

import socket
import time
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from fabricctl import fields
from fabricctl.agent.record import Assignment
from fabricctl.clock import nics, steering
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError
from fabricctl.store.schema import NOT_MEASURED, ClockStatus, Severity
from fabricctl.telemetry import netlink
from fabricctl.telemetry.source import Row, Tell

if TYPE_CHECKING:
    from fabricctl.clock.live import JobClock
    from fabricctl.clock.probing import Virtual

LAB_CLOCK = Path("/run/fabricctl-lab/clock")  # fabricctl/lab/vclock.py; on no real node
TRY_AGAIN_S = 5.0  # rails may get their addresses after the job began


class Clockwork:
    """Makes the clock when its rails have addresses, calls it when it is due, reads it out."""

    def __init__(
        self,
        given: Assignment,
        config: Config,
        rails: Sequence[str],
        resolve: Callable[[str], str | None],
        tell: Tell,
    ) -> None:
        """``resolve``: a node's address, None while it is not known."""
        self._start, self._config, self._rails = given.start, config.clock, tuple(rails)
        # A requeue begins later, a restarted agent has a higher number: what came before is old.
        self._life = given.begin_real_ns + given.life
        self._page = given.files.clock(given.start.job)
        self._nic_clocks = given.nic_clocks
        self._resolve, self._tell = resolve, tell
        self._clock: JobClock | None = None
        self._tried_s = -TRY_AGAIN_S
        self._told = ""
        self._status = ClockStatus.UNSYNCHRONISED
        self._lab_text: str | None = None
        self._steer = given.files.steer_state(given.start.job)
        self.notice = ""  # why no clock follows the job's, for the user
        self._steered = "waiting" if given.start.envelope.clock != "page" else ""
        self._wanted = self._config.enabled and len(self._start.nodes) > 1 and bool(rails)

    @property
    def fd(self) -> int | None:
        """To be watched for reading; changes when the clock begins."""
        return None if self._clock is None else self._clock.fileno()

    def next_due_s(self) -> float:
        """On CLOCK_MONOTONIC."""
        if self._clock is not None:
            return self._clock.next_due_s()
        return self._tried_s + TRY_AGAIN_S if self._wanted else float("inf")

    def run_due(self) -> None:
        if self._clock is not None:
            self._clock.run_due()
        elif self._wanted and time.monotonic() >= self._tried_s + TRY_AGAIN_S:
            self._tried_s = time.monotonic()
            self._begin()

    def receive(self) -> None:
        if self._clock is not None:
            self._clock.receive()

    def set_missing(self, nodes: Sequence[str]) -> None:
        """Nodes from which no agent is heard."""
        if self._clock is not None:
            self._clock.set_dead(nodes)

    def close(self) -> None:
        if self._clock is not None:
            self._clock.close()
            self._clock = None

    def _begin(self) -> None:
        try:
            from fabricctl.clock.exchange import ports
            from fabricctl.clock.live import JobClock, Member
            from fabricctl.clock.probing import Rail

            addresses = rail_addresses(self._rails)
            if not addresses.keys() >= set(self._rails):
                bare = ", ".join(name for name in self._rails if name not in addresses)
                self._complain(f"no job clock: rails without an address: {bare}")
                return
            known = [Rail(rail, addresses[rail], self._nic_clock(rail)) for rail in self._rails]
            start, config = self._start, self._config
            self._clock = JobClock(
                Member(start.job, start.nodes, start.node, start.envelope.key, self._life),
                known,
                ports(start.job, config.port_first, config.port_count),
                self._resolve,
                page=self._page,
                virtual=self._lab_clock(),
            )
        except (FabricError, OSError, ImportError) as error:
            self._complain(str(error))

    def _nic_clock(self, rail: str) -> int:
        """The open clock of a rail's NIC, if that is to stamp the probes; else -1."""
        if self._config.nic_stamps == "off":
            return -1
        choice = nics.choose(rail, self._nic_clocks)
        if choice.why:
            text = f"{rail}: stamps of the NIC are not used, but the kernel's: {choice.why}"
            self._tell("clock", text, Severity.INFO)
        return choice.fd

    def _complain(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell("clock", text)

    def _lab_clock(self) -> "Virtual | None":
        from fabricctl.clock.probing import Virtual

        try:
            self._lab_text = LAB_CLOCK.read_text()
        except OSError:
            self._lab_text = None
            return None
        try:
            return Virtual.parse(fields.decode(self._lab_text))
        except DataError as error:
            self._complain(f"the lab's clock: {error}")
            return None

    def rows(self) -> tuple[Sequence[Row], Sequence[Row]]:
        """Rows of the tables ``job_clock`` and ``delay``, once a second."""
        if self._steered:
            self._tell_steered()
        if self._clock is None:
            return [], []
        self._follow_lab()
        self._tell_status()
        mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        state = self._clock.state()
        bound = None if state.likely_ns is None else _counted(2 * state.likely_ns)
        delays = [
            (
                mono_ns,
                row.rail,
                row.peer,
                int(row.inbound),
                row.size_class,
                row.count,
                *row.quantiles_ns,
                row.floor_ns,
                bound,
                row.sent,
                row.arrived,
                row.duplicates,
                row.reordered,
                *row.sources,
            )
            for row in self._clock.take_delays()
        ]
        if state.job_ns is None:
            return [], delays
        sure = [_counted(value) for value in (state.likely_ns, state.early_ns, state.late_ns)]
        last = round(state.rate), state.stamps
        return [(state.mono_ns, state.job_ns, state.status, *sure, *last)], delays

    def _follow_lab(self) -> None:
        """A fault may have set the node's clock anew."""
        assert self._clock is not None
        before, virtual = self._lab_text, self._lab_clock()
        if self._lab_text != before:
            self._clock.set_virtual(virtual)

    def _tell_steered(self) -> None:
        """What becomes of --fabric-clock: each state once."""
        try:
            found = steering.read_state(self._steer)
        except DataError as error:
            self._complain(str(error))
            return
        if found is None or found.state in (self._steered, "ended"):
            return
        self._steered = found.state
        good = found.state in ("slewing", "steady")
        words = f"--fabric-clock={found.clock}: {found.state}"
        text = f"{words}: {found.why}" if found.why else words
        self.notice = "" if found.state not in ("refused", "left") else text
        self._tell("clock", text, Severity.INFO if good else Severity.WARNING)

    def _tell_status(self) -> None:
        assert self._clock is not None
        status = ClockStatus(self._clock.state().status)
        if status != self._status:
            self._status = status
            good = status == ClockStatus.SYNCHRONISED
            words = status.name.lower().replace("holdover", "holding over: no measurements")
            severity = Severity.INFO if good else Severity.WARNING
            self._tell("clock", f"the job clock is {words}", severity)


def _counted(value: float | None) -> int | None:
    """For a column of 32 bits; what does not fit is not known."""
    return None if value is None or not value < NOT_MEASURED["I"] else max(0, ceil(value))


def rail_addresses(names: Sequence[str]) -> dict[str, str]:
    """One address of each interface that has any, IPv4 before IPv6."""
    found: dict[str, str] = {}
    for index, address in netlink.addresses():
        try:
            name = socket.if_indextoname(index)
        except OSError:
            continue  # gone meanwhile
        if name in names and not address.startswith("fe80"):
            four = ":" not in address
            if name not in found or (four and ":" in found[name]):
                found[name] = address
    return found
