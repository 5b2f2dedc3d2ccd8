"""Many audits of the same nodes as one: what ever failed, what does not hold still. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from fabricctl.fleet.audit.model import STATUSES, Check, Status

UNSTEADY = 0.5  # the least of a value, of its median, below which a rail is not steady
LEAST = 5  # rounds that tell it


def together(rounds: Sequence[Sequence[Check]]) -> list[Check]:
    """For each check its worst verdict and how often; for bandwidths whether they held."""
    every: dict[tuple[str, str, str, str], list[Check]] = defaultdict(list)
    for checks in rounds:
        for check in checks:
            every[check.node, check.area, check.name, check.rail].append(check)
    found = []
    for _, mine in sorted(every.items()):
        worst = min(mine, key=lambda check: STATUSES.index(check.status))
        bad = sum(check.status == worst.status for check in mine)
        said = (
            worst.value if worst.status == "ok" else f"{worst.value} ({bad} of {len(mine)} times)"
        )
        found.append(replace(worst, value=said[:300]))
        found += _steadiness(mine)
    return found


def _steadiness(mine: Sequence[Check]) -> list[Check]:
    numbers = [check.number for check in mine if check.number is not None and check.unit == "B/s"]
    if len(numbers) < LEAST:
        return []
    middle, least = statistics.median(numbers), min(numbers)
    status: Status = "ok" if least >= UNSTEADY * middle else "warn"
    one = mine[0]
    said = f"{least * 8 / 1e6:.0f} Mbit/s at least, {middle * 8 / 1e6:.0f} as a rule"
    return [Check(one.node, one.area, f"{one.name} steady", status, said,
                  f"never below {100 * UNSTEADY:.0f} % of the usual", one.rail, least / middle,
                  "1")]  # fmt: skip
