"""InfiniBand and RoCE ports: state and counters from /sys/class/infiniband."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns

from fabricctl.store import schema
from fabricctl.telemetry.source import Complaints, Row, Tell

SYS = Path("/sys/class/infiniband")
MAX_PORTS = 64
# Data counters count 4-byte words (Documentation/ABI/stable/sysfs-class-infiniband).
_WORD = 4
# Column of the table: file and factor. What a device does not have is not measured.
FILES = (
    ("counters/port_rcv_data", _WORD),
    ("counters/port_xmit_data", _WORD),
    ("counters/port_xmit_wait", 1),
    ("counters/symbol_error", 1),
    ("counters/link_downed", 1),
    ("counters/link_error_recovery", 1),
    ("counters/port_rcv_errors", 1),
    ("counters/port_xmit_discards", 1),
    ("hw_counters/out_of_sequence", 1),
    ("hw_counters/local_ack_timeout_err", 1),
    ("hw_counters/np_ecn_marked_roce_packets", 1),
)
_ACTIVE = "4:"  # of "4: ACTIVE"


@dataclass(frozen=True)
class Port:
    """One port of one device."""

    device: str
    number: int
    path: Path

    @property
    def name(self) -> str:
        return f"{self.device}/{self.number}"


def ports(folder: Path = SYS) -> list[Port]:
    """All ports of the node, by device and number."""
    try:
        devices = sorted(folder.iterdir())
    except OSError:
        return []
    found = []
    for device in devices:
        try:
            numbers = sorted(int(p.name) for p in (device / "ports").iterdir() if p.name.isdigit())
        except OSError:
            continue
        found += [Port(device.name, n, device / "ports" / str(n)) for n in numbers]
    return found[:MAX_PORTS]


class RdmaSource:
    """One row of the ``rdma_port`` table a port and second."""

    table = schema.RDMA_PORT

    def __init__(self, tell: Tell, folder: Path = SYS) -> None:
        self._complaints = Complaints("rdma", tell)
        self.ports = ports(folder)

    def rows(self) -> Sequence[Row]:
        rows: list[Row] = []
        for index, port in enumerate(self.ports):
            time_mono_ns = clock_gettime_ns(CLOCK_MONOTONIC)
            counters = (self._counter(port, name, factor) for name, factor in FILES)
            rows.append((time_mono_ns, index, self._active(port), *counters))
        return rows

    def _active(self, port: Port) -> int | None:
        try:
            state = (port.path / "state").read_text("ascii", "replace")
        except OSError as error:
            self._complaints.failed(f"port {port.name}", error)
            return None
        self._complaints.works(f"port {port.name}")
        return int(state.startswith(_ACTIVE))

    def _counter(self, port: Port, name: str, factor: int) -> int | None:
        try:
            text = (port.path / name).read_text("ascii", "replace").strip()
        except FileNotFoundError:
            return None  # not of this kind of device
        except OSError as error:
            self._complaints.failed(f"port {port.name} {name}", error)
            return None
        # A counter that the device does not keep reads "N/A (no PMA)", or has all bits set.
        value = int(text) * factor if text.isdigit() else schema.NOT_MEASURED["Q"]
        return value if value < schema.NOT_MEASURED["Q"] else None

    def close(self) -> None:
        self.ports = []
