"""Does the full audit find every fault, and nothing where there is none?

Eight nodes. Batches of faults, each of its own kind and place, one full audit a batch; then clean
audits, as many as asked for. A finding counts for a fault when it names its node and, where the
fault has one, its rail; whatever names another is a false finding.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

Options = Mapping[str, object]
# (kind, targets, options), or ("ip", words of ip(8) on the node, {}).
BATCHES: Sequence[Sequence[tuple[str, tuple[str, ...], Options]]] = (
    (
        ("cut", ("n1", "r0"), {}),
        ("blackhole", ("n2", "r1"), {"direction": "tx"}),
        ("loss-large", ("n3", "r0"), {"above": 1000}),
        ("loss", ("n4", "r1"), {"percent": 15.0}),
        ("disk-full", ("n5", "spool"), {}),
        ("stop", ("n6", "fabricctl.node.service"), {}),
        ("rate", ("n7", "r0"), {"rate": "100mbit"}),
        ("loss", ("n8", "r1"), {"percent": 20.0, "direction": "rx"}),
    ),
    (
        ("blackhole", ("n1", "r0"), {"direction": "rx"}),
        ("blackhole", ("n2", "r1"), {}),
        ("carrier-flap", ("n3", "r1"), {"period_s": 0.4}),
        ("flap", ("n4", "r0"), {"period_s": 0.5}),
        ("loss", ("n5", "r0"), {"percent": 10.0, "direction": "rx"}),
        ("disk-full", ("n6", "disk"), {}),
        ("rate", ("n7", "r1"), {"rate": "150mbit", "direction": "tx"}),
        ("kill", ("n8", "fabricctl-node"), {}),
    ),
    (
        ("ip", ("n1", "r0", "mtu", "1300"), {}),
        ("ip", ("n2", "r1", "down"), {}),
        ("loss-large", ("n3", "r1"), {"above": 1200, "direction": "tx"}),
        ("loss", ("n4", "r0"), {"percent": 20.0, "direction": "tx"}),
        ("rate", ("n5", "r1"), {"rate": "100mbit", "direction": "rx"}),
        ("stop", ("n6", "munged"), {}),
        ("cut", ("n7", "r1"), {}),
        ("loss", ("n8", "r0"), {"percent": 8.0}),
    ),
    (
        ("cut", ("n1", "r1"), {}),
        ("blackhole", ("n2", "r0"), {"direction": "tx"}),
        ("loss-large", ("n3", "r1"), {"above": 1000, "direction": "rx"}),
        ("loss", ("n4", "r1"), {"percent": 12.0, "direction": "tx"}),
        ("rate", ("n5", "r0"), {"rate": "100mbit", "direction": "tx"}),
        ("flap", ("n6", "r1"), {"period_s": 0.3}),
        ("carrier-flap", ("n7", "r0"), {"period_s": 0.5}),
        ("disk-full", ("n8", "spool"), {}),
    ),
)


def audit(lab: Lab) -> tuple[float, set[tuple[str, str, str]]]:
    """How long it took, and what failed: (node, rail, check)."""
    begin_s = time.monotonic()
    done = lab.exec("ctl", ["fabricctl", "audit", "n[1-8]", "--full", "--json"], check=False,
                    timeout_s=150)  # fmt: skip
    took_s = time.monotonic() - begin_s
    if not done.stdout:
        raise SystemExit(done.stderr)
    checks = json.loads(done.stdout)["checks"]
    return took_s, {
        (c["node"], c["rail"], f"{c['area']} {c['name']}") for c in checks
        if c["status"] not in ("ok", "warn")
    }  # fmt: skip


def put_in(lab: Lab, fault: tuple[str, tuple[str, ...], Options]) -> None:
    kind, target, options = fault
    if kind == "ip":
        lab.exec(target[0], ["ip", "link", "set", *target[1:]])
    else:
        lab.fault(kind, *target, **options)


def heal(lab: Lab) -> None:
    lab.heal_all()
    for node, rail in (("n1", "r0"), ("n2", "r1")):
        lab.exec(node, ["ip", "link", "set", rail, "mtu", "1500", "up"])
    lab.up()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = lab.exec("ctl", ["fabricctl", "status", "--json", "--fail-on", "never"])
        if not json.loads(done.stdout)["findings"]:
            return
        time.sleep(0.5)


def place(target: Sequence[str]) -> tuple[str, str]:
    """Node and rail; a fault of a host has no rail."""
    return target[0], target[1] if target[1:] and target[1] in ("r0", "r1") else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="bench-audit", help="of the lab")
    parser.add_argument("--clean", type=int, default=2, help="clean audits")
    parser.add_argument("--batches", default="1,2,3,4", help="of faults; empty: none")
    given = parser.parse_args()
    seeded = missed = false = 0
    longest_s = 0.0
    with Lab(LabSpec(name=given.name, nodes=8)) as lab:
        for number in map(int, filter(None, given.batches.split(","))):
            batch = BATCHES[number - 1]
            for fault in batch:
                put_in(lab, fault)
            took_s, found = audit(lab)
            heal(lab)
            longest_s = max(longest_s, took_s)
            places = [place(target) for _, target, _ in batch]
            lost = [fault for fault, where in zip(batch, places, strict=True)
                    if not any(one[:2] == where for one in found)]  # fmt: skip
            wrong = {one for one in found if one[:2] not in places}
            seeded, missed, false = seeded + len(batch), missed + len(lost), false + len(wrong)
            said = f"missed {lost or 'none'}; false {sorted(wrong) or 'none'}"
            print(f"batch {number}: {len(batch)} faults, {took_s:.1f} s, load "
                  f"{os.getloadavg()[0]:.1f}; {said}", flush=True)  # fmt: skip
        clean_bad = 0
        for number in range(given.clean):
            took_s, found = audit(lab)
            longest_s = max(longest_s, took_s)
            clean_bad += bool(found)
            print(f"clean audit {number + 1}: {took_s:.1f} s, load {os.getloadavg()[0]:.1f}; "
                  f"{sorted(found) or 'no finding'}", flush=True)  # fmt: skip
    print(f"{seeded - missed} of {seeded} faults found, {false} false findings beside them; "
          f"{clean_bad} of {given.clean} clean audits had one; the longest took {longest_s:.1f} s "
          "(goal: all, none, 60 s)")  # fmt: skip
    return int(bool(missed or false or clean_bad))


if __name__ == "__main__":
    sys.exit(main())
