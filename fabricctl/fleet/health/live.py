"""What fabricd knows of nodes just now, as checks that health can act upon. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fabricctl.errors import DataError
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.head.message import NAME
from fabricctl.fleet.head.views import LINK_COLUMNS, NODE_COLUMNS
from fabricctl.units import format_duration


def checks(
    snapshot: Mapping[str, Any],
    only: Sequence[str] | None = None,
    looked_s: Mapping[str, float] | None = None,
) -> list[Check]:
    """Carrier of each rail of the nodes that report, and who stopped to report.

    The carrier is that of audits, so that an audit and fabricd confirm each other. Nodes that never
    reported are none of fabricd's. ``looked_s``: node -> how long ago it was looked at: a report
    of before says nothing twice. Raises :class:`DataError`.
    """
    try:
        interval_s = float(snapshot["reports"]["interval_s"])
        found = list(_heard(snapshot["links"], looked_s or {}))
        fresh = {check.node for check in found}
        for row in snapshot["nodes"]:
            given = dict(zip(NODE_COLUMNS, row, strict=True))
            name, age_s = str(given["node"]), given["age_s"]
            # A row of a node that is silent for too long has its age and no values.
            silent = age_s is not None and given["rails_down"] is None
            if silent or name in fresh:
                said = f"nothing for {format_duration(float(age_s))}" if silent else "reports"
                found.append(Check(name, "head", "reports", "warn" if silent else "ok", said,
                                   f"every {interval_s:g} s"))  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise DataError(
            "health: what fabricd says cannot be read: is it of this version?"
        ) from None
    wanted = None if only is None else set(only)
    return [check for check in found if NAME.fullmatch(check.node)
            and (wanted is None or check.node in wanted)]  # fmt: skip


def _heard(links: Sequence[Sequence[Any]], looked_s: Mapping[str, float]) -> list[Check]:
    found = []
    for row in links:
        given = dict(zip(LINK_COLUMNS, row, strict=True))
        if float(given["age_s"]) >= looked_s.get(str(given["node"]), math.inf):
            continue
        state = str(given["state"])
        found.append(
            Check(str(given["node"]), "link", "carrier", "ok" if state == "up" else "fail", state,
                  "up", str(given["rail"]))
        )  # fmt: skip
    return found
