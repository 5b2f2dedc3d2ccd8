"""InfiniBand and RoCE ports, for libraries that use verbs: which of them to leave out.

Verbs traffic of a running program cannot be moved: a port that is lost ends the program's
connections there. What can be done is to say so at once, and to keep the next start off the port.
A node whose ports are all in order, or all out, gets no variable: its libraries choose as the
site has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl.telemetry import rdma

NCCL, UCX = "NCCL_IB_HCA", "UCX_NET_DEVICES"
_ACTIVE = "4:"  # of "4: ACTIVE" (Documentation/ABI/stable/sysfs-class-infiniband)


@dataclass(frozen=True)
class Port:
    """As libraries name it: ``mlx5_0:1``."""

    name: str
    active: bool


def look(folder: Path = rdma.SYS) -> tuple[Port, ...]:
    """Every port of the node; one that cannot be read is not active."""
    return tuple(Port(f"{port.device}:{port.number}", _active(port)) for port in rdma.ports(folder))


def _active(port: rdma.Port) -> bool:
    try:
        return (port.path / "state").read_text("ascii", "replace").startswith(_ACTIVE)
    except OSError:
        return False


def environment(ports: Iterable[Port], devices: Sequence[str] = ()) -> dict[str, str]:
    """What keeps NCCL, RCCL and UCX off ports that are down. ``devices``: network devices that
    UCX may use as well."""
    known = list(ports)
    active = [port.name for port in known if port.active]
    if not active or len(active) == len(known):
        return {}
    return {NCCL: "=" + ",".join(active), UCX: ",".join([*active, *devices])}


def changed_text(text: str, variables: Mapping[str, str]) -> str:
    """An ``env`` file with these variables, and without those of before. Only for nodes with RDMA
    devices, where nothing else sets them."""
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in (NCCL, UCX)]
    return "".join(f"{line}\n" for line in [*lines, *(f"{k}={v}" for k, v in variables.items())])


@dataclass(frozen=True)
class Change:
    """A port that came or went."""

    port: str
    active: bool


class Watch:
    """The ports of this node; :meth:`turn` tells what changed since the last call."""

    def __init__(self, folder: Path = rdma.SYS) -> None:
        self._folder = folder
        self.ports = look(folder)

    def turn(self) -> list[Change]:
        before = {port.name: port.active for port in self.ports}
        self.ports = look(self._folder)
        now = {port.name: port.active for port in self.ports}
        names = sorted(before.keys() | now.keys())
        return [
            Change(name, now.get(name, False))
            for name in names
            if before.get(name, False) != now.get(name, False)
        ]
