"""The process behind a fault that needs one: flaps, cross traffic, healing in time.

``python -m fabricctl.lab.actor LAB FAULT_ID``: says ``ready``, waits for ``go`` on its input (the
fault is in then), acts until the fault's time is over or somebody ends it.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable

from fabricctl.errors import LabError
from fabricctl.lab.cluster import Lab
from fabricctl.lab.faults import Faults
from fabricctl.lab.kernel import in_netns
from fabricctl.lab.registry import InForce

_TICK_S = 0.001
_RETRY_S = 0.1
_FRAME_BYTES = 1514
# To a locally administered address that no node has: the switch's port carries it, the node's
# network stack drops it unread. The type is for local experiments (IEEE 802, 0x88B5).
_FRAME = bytes.fromhex("02ffffffffff 02fffffffffe 88b5") + bytes(_FRAME_BYTES - 14)


def _sleep_until(mono_ns: int) -> None:
    wait_ns = mono_ns - time.monotonic_ns()
    if wait_ns > 0:
        time.sleep(wait_ns / 1e9)


def _flap(faults: Faults, item: InForce, over: Callable[[int], bool]) -> None:
    """Edges at fixed times from the fault's begin: a late one does not shift those after it."""
    assert item.begun is not None
    period_ns = round(float(item.fault.options["period-s"]) * 1e9)
    outage_ns = round(period_ns * float(item.fault.options["duty"]))
    number = 0
    while True:
        begin_ns = item.begun.mono_ns + number * period_ns
        for at_ns, acting in ((begin_ns, True), (begin_ns + outage_ns, False)):
            if over(at_ns):
                return
            _sleep_until(at_ns)
            if faults.edge(item.fault.id, acting) is None:
                return
        number += 1


def _cross(lab: Lab, faults: Faults, item: InForce, over: Callable[[int], bool]) -> None:
    """Frames on the port's own queue, a few every millisecond, so many that the load is right."""
    node, interface = item.fault.target
    with in_netns(lab.paths.switch_netns(interface)):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((node, 0))
    sender.setblocking(False)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # this one works
    bytes_per_ns = (
        faults.rx_rate_bit_per_s(node, interface) / 8e9 * float(item.fault.options["load"])
    )
    last_ns, owed = time.monotonic_ns(), 0.0
    while not over(time.monotonic_ns()):
        time.sleep(_TICK_S)
        now_ns = time.monotonic_ns()
        # After a pause of the machine the load goes on; it does not catch up in one burst.
        owed += min(now_ns - last_ns, 10_000_000) * bytes_per_ns
        last_ns = now_ns
        while owed >= _FRAME_BYTES:
            owed -= _FRAME_BYTES
            try:
                sender.send(_FRAME)
            except OSError:
                continue  # the queue is full: that packet is lost, as on a switch


def main() -> None:
    """Entry point: ``actor LAB FAULT_ID``."""
    lab = Lab(name=sys.argv[1])
    faults = lab.faults
    with contextlib.suppress(OSError):
        # Edges on time also on a machine that is full; all that this process does is wait. A node
        # that it boots goes ahead of nobody.
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if sys.stdin.readline() != "go\n":
        return
    item = faults.registry.get(sys.argv[2])
    if item is None:
        return
    until_ns = item.until_mono_ns

    def over(mono_ns: int) -> bool:
        return until_ns is not None and mono_ns >= until_ns

    if item.fault.flaps:
        _flap(faults, item, over)
    elif item.fault.kind == "cross":
        _cross(lab, faults, item, over)
    if until_ns is not None:
        _sleep_until(until_ns)
        while (now := faults.registry.get(item.fault.id)) and now.until_mono_ns == until_ns:
            try:
                faults.heal(item.fault.id, cause="timer")
            except LabError:  # its node is frozen by another fault; or somebody was faster
                time.sleep(_RETRY_S)


if __name__ == "__main__":
    main()
