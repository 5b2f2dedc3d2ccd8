"""What every switch port should be like, given the faults in force, and making it so.

A fault never undoes another: the wanted state of a port follows from all faults together, and
only what differs from before is changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fabricctl.lab import tc
from fabricctl.lab.rtnl import Rtnl
from fabricctl.lab.stamp import Stamp, Stopwatch
from fabricctl.lab.tc import Drop
from fabricctl.lab.wiring import BRIDGE

Direction = Literal["both", "tx", "rx"]


@dataclass(frozen=True)
class Port:
    """A node's port as the switch has it. ``tx`` is what the node sends, ``rx`` what it gets."""

    up: bool = True  # down: the node loses carrier
    bridged: bool = True  # off: carrier stays, nothing passes
    tx_drops: tuple[Drop, ...] = ()
    rx_drops: tuple[Drop, ...] = ()
    tx_rate_bit_per_s: int = 0
    rx_rate_bit_per_s: int = 0


@dataclass(frozen=True)
class Effect:
    """What one fault does to one port while it acts."""

    cut: bool = False
    unbridge: bool = False
    drop: Drop | None = None
    rate_bit_per_s: int = 0
    direction: Direction = "both"


def wanted(rate_bit_per_s: int, effects: Iterable[Effect]) -> Port:
    """The port that all effects together make; ``rate_bit_per_s`` is the lab's own, 0 for none."""
    port = Port(tx_rate_bit_per_s=rate_bit_per_s, rx_rate_bit_per_s=rate_bit_per_s)
    for effect in effects:
        port = replace(port, up=port.up and not effect.cut)
        port = replace(port, bridged=port.bridged and not effect.unbridge)
        for way in ("tx", "rx"):
            if effect.direction in ("both", way):
                port = _one_way(port, way, effect)
    return port


def _one_way(port: Port, way: str, effect: Effect) -> Port:
    changes: dict[str, object] = {}
    if effect.drop is not None:
        drops = {*getattr(port, f"{way}_drops"), effect.drop}
        changes[f"{way}_drops"] = tuple(sorted(drops))
    rate = getattr(port, f"{way}_rate_bit_per_s")
    if effect.rate_bit_per_s:
        slower = min(rate, effect.rate_bit_per_s) if rate else effect.rate_bit_per_s
        changes[f"{way}_rate_bit_per_s"] = slower
    return replace(port, **changes)  # type: ignore[arg-type]


def uplink(node: str) -> str:
    """The device on which a node's sent packets queue, inside the switch."""
    return f"up-{node}"


def change(net: Rtnl, node: str, before: Port | None, after: Port) -> Stamp:
    """Turns a port from ``before`` into ``after``; None: whatever it was, everything is set."""
    links = net.links()
    index = links[node].index
    if after.tx_rate_bit_per_s and uplink(node) not in links:
        net.add_ifb(uplink(node))
        links = net.links()
    via = links.get(uplink(node))
    watch = Stopwatch()
    if before is None or before.tx_drops != after.tx_drops:
        tc.set_drops(net, index, tc.INGRESS, after.tx_drops)
    if before is None or before.rx_drops != after.rx_drops:
        tc.set_drops(net, index, tc.EGRESS, after.rx_drops)
    if before is None or before.rx_rate_bit_per_s != after.rx_rate_bit_per_s:
        tc.set_rate(net, index, after.rx_rate_bit_per_s)
    if via and (before is None or before.tx_rate_bit_per_s != after.tx_rate_bit_per_s):
        _set_uplink(net, index, via.index, after.tx_rate_bit_per_s)
    if before is None or before.bridged != after.bridged:
        net.set_master(index, links[BRIDGE].index if after.bridged else 0)
    if before is None or before.up != after.up:
        net.set_up(index, after.up)
    return watch.stop()


def _set_uplink(net: Rtnl, port: int, via: int, rate_bit_per_s: int) -> None:
    if rate_bit_per_s:
        net.set_up(via, True)
        tc.set_rate(net, via, rate_bit_per_s)
        tc.set_detour(net, port, via)
    else:
        tc.set_detour(net, port, 0)
        tc.set_rate(net, via, 0)
