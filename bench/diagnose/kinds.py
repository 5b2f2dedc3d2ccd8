"""What is done to the jobs: each kind of fault that the lab knows, and what the program can suffer.

`kill`, `clock`, the management link and full disks do not slow a program: they are among the noise
of healthy jobs. `node-kill` and `power-off` end a plain srun: bench/recover.py has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LOST = ("queueing", "path")


@dataclass(frozen=True)
class Kind:
    """``causes``: those of the report that name it. ``place``: what says where it is."""

    fault: str  # of the lab; "late" and "checkpoint" are the program's own
    causes: tuple[str, ...]
    place: str = "link"  # link, rail, node or all
    options: Mapping[str, object] = field(default_factory=dict)
    alone: bool = False  # shows while the program goes on: not beside what stops it


KINDS: dict[str, Kind] = {
    "cut": Kind("cut", ("link_down",)),
    "carrier-flap": Kind("carrier-flap", ("link_down",), options={"period_s": 1.0}),
    "switch-dead": Kind("switch-dead", ("link_down",), "rail"),
    "blackhole": Kind("blackhole", LOST),
    "blackhole-tx": Kind("blackhole", LOST, options={"direction": "tx"}),
    "blackhole-rx": Kind("blackhole", LOST, options={"direction": "rx"}),
    "flap": Kind("flap", LOST, options={"period_s": 1.0, "duty": 0.6}),
    "loss": Kind("loss", LOST, options={"percent": 25.0}),
    "loss-tx": Kind("loss", LOST, options={"percent": 30.0, "direction": "tx"}),
    "loss-rx": Kind("loss", LOST, options={"percent": 30.0, "direction": "rx"}),
    "loss-large": Kind("loss-large", LOST, options={"above": 1000}),
    "switch-silent": Kind("switch-silent", LOST, "rail"),
    "rate": Kind("rate", (*LOST, "rail_slow"), options={"rate": "40mbit"}, alone=True),
    "cross": Kind(
        "cross", (*LOST, "rail_slow"), options={"rate": "100mbit", "load": 1.3}, alone=True
    ),
    "freeze": Kind("freeze", ("host_stopped",), "node"),
    "stop": Kind("stop", ("host_stopped",), "node"),
    "late": Kind("late", ("rank_slow",), "node", alone=True),
    "checkpoint": Kind("checkpoint", ("checkpoint",), "all", alone=True),
}
PROGRAM = "diagnose/program.py"


@dataclass(frozen=True)
class Harm:
    """One fault as it was put in, on CLOCK_REALTIME by the lab's log."""

    kind: str
    node: str
    begin_ns: int
    end_ns: int

    @property
    def of(self) -> Kind:
        return KINDS[self.kind]


def target(kind: Kind, node: str) -> tuple[str, ...]:
    """As `fabricctl lab fault` wants it."""
    if kind.fault == "stop":
        return (node, PROGRAM)
    if kind.fault == "freeze":
        return (node,)
    return ("r0",) if kind.place == "rail" else (node, "r0")
