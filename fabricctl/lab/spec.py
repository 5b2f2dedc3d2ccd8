"""What a lab consists of: its size, its names and addresses, where its files lie.

Everything of a lab named ``x`` lies below one private tmpfs, so that one unmount takes it away::

    /run/fabricctl-lab/x.lock         held while a command changes the lab
    /run/fabricctl-lab/x/             root 0700, tmpfs
      spec.json                       what was asked for
      etc/                            /etc of every node
      shared/                         /shared of every node, a tmpfs of its own
      net/<name>                      network namespaces: sw-m0, sw-r0, ..., ctl, n1, ...
      nodes/<node>/control            socket of the node's init
      nodes/<node>/console.log        what the node's init had to say
      nodes/<node>/disk/              /var of the node, survives its death
      nodes/<node>/spool/             /var/spool/fabricctl of the node, a tmpfs of its own
      nodes/<node>/lab/               /run/fabricctl-lab of the node: its virtual clock
      nodes/<node>/root/              where the node builds its root; empty seen from outside
      faults/<id>.json                faults in force
      faults.jsonl                    every fault and heal, with its true time
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from fabricctl.errors import LabError, UsageError

BASE = Path("/run/fabricctl-lab")
MANAGEMENT = "m0"
CONTROLLER = "ctl"
JOB_USERS: Mapping[str, int] = {"alice": 6001, "bob": 6002, "carol": 6003}
# The agents' account: `agent.user` of the site's configuration, in the lab.
AGENT_USER, AGENT_UID = "fabric", 6100
SHARED = Path("/shared")

_MAX_NODES = 200  # 250 names fit the largest pid namespaces and a /16 with room to spare
_MAX_RAILS = 8


@dataclass(frozen=True)
class LabSpec:
    """What `lab up` was asked for."""

    name: str = "lab"
    nodes: int = 5
    rails: int = 2
    rate_bit_per_s: int = 0  # of every rail's links, each way; 0: as fast as the machine
    bare: bool = False  # Slurm alone, nothing of ours
    accounting: bool = False
    conf: Mapping[str, str] = field(default_factory=dict)  # slurm.conf lines to add or replace

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", self.name):
            raise UsageError(
                f"lab name {self.name[:40]!r}: a small letter, then at most 30 of a-z, 0-9 and -"
            )
        if not 1 <= self.nodes <= _MAX_NODES:
            raise UsageError(f"lab: {self.nodes} nodes, 1 to {_MAX_NODES} are possible")
        if not 1 <= self.rails <= _MAX_RAILS:
            raise UsageError(f"lab: {self.rails} rails, 1 to {_MAX_RAILS} are possible")

    @property
    def compute_nodes(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))

    @property
    def all_nodes(self) -> tuple[str, ...]:
        """The controller, which is also the login node, first."""
        return (CONTROLLER, *self.compute_nodes)

    @property
    def main_nodes(self) -> int:
        """How many of the compute nodes are in partition `main`: the last one is the spare."""
        return max(1, self.nodes - 1)

    @property
    def rail_names(self) -> tuple[str, ...]:
        return tuple(f"r{number}" for number in range(self.rails))

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Every node's interfaces but for loopback."""
        return (MANAGEMENT, *self.rail_names)

    def address(self, node: str, interface: str) -> str:
        """``10.77.x.y`` on the management network, ``10.78.``, ``10.79.``, ... on the rails."""
        network = 77 + self.interfaces.index(interface)
        host = 1 if node == CONTROLLER else 10 + int(node.removeprefix("n"))
        return f"10.{network}.{host >> 8}.{host & 255}"

    def max_segments(self, interface: str) -> int:
        """How many packets may cross a link as one, 0 for no limit.

        On links with a rate as many as take 50 us: one by one, two busy cores do not get above
        300 Mbit/s, by fours 930 of 1,000 (measured).
        """
        if interface == MANAGEMENT or not self.rate_bit_per_s:
            return 0
        return max(1, int(self.rate_bit_per_s * 50e-6 / (1514 * 8)))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LabSpec":
        """Raises :class:`LabError` for what :meth:`to_json` of this version did not write."""
        try:
            given = json.loads(text)
            return cls(**{item.name: given[item.name] for item in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"lab: its spec.json cannot be read ({error}): take it down") from None


class NodePaths:
    """One node's files, seen from outside."""

    def __init__(self, root: Path) -> None:
        self.dir = root
        self.control = root / "control"
        self.console = root / "console.log"
        self.disk = root / "disk"
        self.spool = root / "spool"
        self.root = root / "root"
        self.lab = root / "lab"
        self.clock = self.lab / "clock"


class LabPaths:
    """A lab's files, seen from outside."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = BASE / name
        self.lock = BASE / f"{name}.lock"
        self.spec = self.state / "spec.json"
        self.etc = self.state / "etc"
        self.shared = self.state / "shared"
        self.net = self.state / "net"
        self.nodes = self.state / "nodes"
        self.faults = self.state / "faults"
        self.fault_log = self.state / "faults.jsonl"

    def node(self, node: str) -> NodePaths:
        return NodePaths(self.nodes / node)

    def node_netns(self, node: str) -> Path:
        return self.net / node

    def switch_netns(self, interface: str) -> Path:
        """The namespace of the bridge that joins all nodes' ``interface``."""
        return self.net / f"sw-{interface}"
