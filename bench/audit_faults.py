"""Does the full audit find every fault, and nothing where there is none?

Eight nodes. Batches of faults, each of its own kind and place, one full audit a batch; then clean
audits, as many as asked for. A finding counts for a fault when it names its node and, where the
fault has one, its rail; whatever names another is a false finding. ``--random`` makes batches that
nobody has seen before: kinds, places and sizes by a seed.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

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
        ("stop", ("n8", "slurmd"), {}),  # a killed node service is started again, and no fault
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


def drawn(seed: int) -> list[tuple[str, tuple[str, ...], Options]]:
    """A fault on each of eight nodes."""
    chance = random.Random(seed)
    found: list[tuple[str, tuple[str, ...], Options]] = []
    kinds = ["cut", "blackhole", "flap", "carrier-flap", "loss", "loss-large", "rate", "host"]
    chance.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        place = (f"n{number}", chance.choice(("r0", "r1")))
        way = {"direction": chance.choice(("both", "tx", "rx"))}
        match kind:
            case "cut":
                found.append((kind, place, {}))
            case "flap" | "carrier-flap":
                found.append((kind, place, {"period_s": chance.uniform(0.1, 0.8)}))
            case "loss":
                found.append((kind, place, {**way, "percent": chance.uniform(5, 40)}))
            case "loss-large":
                found.append((kind, place, {**way, "above": chance.randint(300, 1400)}))
            case "rate":
                rate = f"{chance.randint(10, 400)}mbit"
                found.append((kind, place, {**way, "rate": rate}))
            case "blackhole":
                found.append((kind, place, way))
            case _:
                what = chance.choice(
                    (("disk-full", "spool"), ("disk-full", "disk"), ("stop", "munged"),
                     ("stop", "fabricctl.node.service"), ("stop", "slurmd"))
                )  # fmt: skip
                found.append((what[0], (place[0], what[1]), {}))
    return found


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
    # A slurmd that was taken for dead is asked again late: a new one registers by itself.
    down = lab.exec("ctl", ["sinfo", "-Nh", "-t", "down,no_respond,drain", "-o", "%N"]).stdout
    for node in sorted(set(down.split())):
        lab.fault("kill", node, "slurmd")
        lab.exec("ctl", ["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
    lab.heal_all()
    lab.up()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = lab.exec("ctl", ["fabricctl", "status", "--json", "--fail-on", "never"])
        if not json.loads(done.stdout)["findings"]:
            return
        time.sleep(0.5)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many loops beside the lab, until the end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait()


def place(target: Sequence[str]) -> tuple[str, str]:
    """Node and rail; a fault of a host has no rail."""
    return target[0], target[1] if target[1:] and target[1] in ("r0", "r1") else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--name", default=os.environ.get("FABRICCTL_LAB", "bench-audit"), help="of the lab"
    )
    parser.add_argument("--clean", type=int, default=2, help="clean audits")
    parser.add_argument("--batches", default="1,2,3,4", help="of faults; empty: none")
    parser.add_argument("--random", default="", help="seeds of batches that are drawn")
    parser.add_argument("--busy", type=int, default=0, help="loops that take CPU time beside them")
    given = parser.parse_args()
    seeded = missed = false = 0
    longest_s = 0.0
    batches = [(f"batch {number}", BATCHES[int(number) - 1])
               for number in filter(None, given.batches.split(","))]  # fmt: skip
    batches += [
        (f"seed {seed}", drawn(int(seed))) for seed in filter(None, given.random.split(","))
    ]
    with Lab(LabSpec(name=given.name, nodes=8)) as lab, busy(given.busy):
        for name, batch in batches:
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
            print(f"{name}: {len(batch)} faults, {took_s:.1f} s, load "
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
