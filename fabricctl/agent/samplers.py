"""The agent's sources together: made at its start, read at its pace, each failing alone."""

import select
from collections.abc import Callable, Sequence
from pathlib import Path

from fabricctl.agent.record import Record
from fabricctl.config import Config
from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.telemetry import batch, gpu, interfaces, netlink, rails
from fabricctl.telemetry.clocks import ClockSource
from fabricctl.telemetry.ethtool import EthtoolReader
from fabricctl.telemetry.flows import FlowSource
from fabricctl.telemetry.gpu import GpuSource
from fabricctl.telemetry.host import HostSource
from fabricctl.telemetry.jobload import JobSource
from fabricctl.telemetry.kmsg import KmsgReader
from fabricctl.telemetry.membw import MembwReader
from fabricctl.telemetry.netfs import NetfsReader
from fabricctl.telemetry.numa import NumaReader
from fabricctl.telemetry.own import OwnReader
from fabricctl.telemetry.processes import Stepd
from fabricctl.telemetry.ras import EdacReader, ThermalReader
from fabricctl.telemetry.rdma import RdmaSource
from fabricctl.telemetry.slow import Reader, SlowSources
from fabricctl.telemetry.source import Source, Tell
from fabricctl.telemetry.tcp import TcpSource

NAME_WAIT_S = 1.0  # for the node's own name; a name service that is slower does not hold us up


def choose_rails(config: Config, node: str) -> tuple[list[str], str]:
    """The rails' interface names, and a complaint when there are none."""
    patterns = config.rails.interfaces
    try:
        links = netlink.dump()
    except (OSError, DataError) as error:
        return [], f"no rails: interfaces cannot be listed: {error}"
    own = None if patterns else interfaces.own_interface(node, NAME_WAIT_S)
    names = rails.choose(patterns, links, own)
    if names:
        return names, ""
    wanted = f"matches {', '.join(patterns)}" if patterns else "is up beside the node's own"
    return [], f"no rails: no interface {wanted}"


def readers(rails: Sequence[str], tell: Tell) -> list[Reader]:
    """The sources that are read seldom."""
    return [
        EthtoolReader(rails),
        NumaReader(),
        EdacReader(),
        ThermalReader(),
        NetfsReader(),
        MembwReader(),
        KmsgReader(tell),
        OwnReader(),
    ]


class Samplers:
    """All sources of one agent."""

    def __init__(
        self,
        names: Sequence[str],
        stepds: Callable[[], Sequence[Stepd]],
        record: Record,
        uid: int,
        rate_hz: float,
    ) -> None:
        """``uid``: the job's user, whose connections are told; ``rate_hz``: of the samples."""
        tracker = rails.LinkTracker(names)
        self._batch = batch.new()
        self._taken = 0
        self._record = record
        self._rails = rails.RailSource(names, record.tell, tracker, self._batch)
        job = JobSource(stepds, record.tell, self._batch)
        expected = Path(gpu.DEVICE_FILE).exists()
        self._sources: list[Source] = [
            self._rails,
            HostSource(record.tell, self._batch, rate_hz),
            job,
            TcpSource(record.tell),
            RdmaSource(record.tell),
            GpuSource(record.tell, expected=expected, mine=lambda: job.pids),
        ]
        self._slow = SlowSources(readers(names, record.tell), record.tell)
        self._flows = FlowSource(uid, list(names), record.tell)
        self._clock = ClockSource()
        self.watch: rails.LinkWatch | None = None
        try:
            self.watch = rails.LinkWatch(record.tell, tracker)
        except OSError as error:
            record.tell("links", f"link events not caught as they happen: {error.strerror}")

    def take(self) -> None:
        """One sample of what every sample has."""
        self._batch.take()
        self._taken += 1

    def wait(self, poll: select.epoll, period_ns: int, timeout_s: float) -> tuple[list[int], int]:
        """Samples at every period until something in ``poll`` is ready or the time is over:
        what is ready, and how many samples were missed."""
        ready, taken, missed = self._batch.wait(poll.fileno(), period_ns, timeout_s)
        self._taken += taken
        return ready, missed

    def take_events(self) -> None:
        """Link events that wait on :attr:`watch`."""
        assert self.watch is not None
        rows = self.watch.receive()
        if rows:
            self._record.put(schema.LINK_EVENT, rows)
            self._rails.ask_anew()

    def take_clocks(self) -> None:
        self._clock.take()

    def put(self) -> None:
        """Everything taken so far, into the record, and what is read once for all of it."""
        self._record.put(self._clock.table, self._clock.rows())
        if not self._taken:
            return
        self._taken = 0
        for source in self._sources:
            self._record.put(source.table, source.rows())
        self._record.put(schema.LINK_EVENT, self._rails.events())
        self._flows.take()
        self._slow.take()
        self._record.put(schema.TCP_FLOW, self._flows.rows())
        self._record.put(schema.READING, self._slow.rows())

    def close(self) -> None:
        for source in self._sources:
            source.close()
        self._flows.close()
        self._slow.close()
        if self.watch is not None:
            self.watch.close()
