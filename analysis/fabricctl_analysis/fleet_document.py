"""``fabricctl fleet-report --json``: docs/report-json.md, "Many jobs"."""

from collections.abc import Sequence

from fabricctl_analysis.fleet_sums import Fleet, Group
from fabricctl_analysis.plan_model import Rate


def document(fleet: Fleet) -> dict[str, object]:
    """The object that is printed."""
    links = fleet.links()
    low, high = links.bounds()
    whole = fleet.whole
    return {
        "format": "fabricctl-fleet-report",
        "version": 1,
        "jobs": len(fleet.digests),
        "unreadable": [{"trace": one.path, "why": one.error} for one in fleet.failed],
        "elapsed_node_h": fleet.total("elapsed"),
        "ideal_node_h": fleet.total("ideal"),
        "no_step_node_h": fleet.total("no_step"),
        "pace_not_measured_node_h": fleet.total("not_known"),
        "repeated_node_h": fleet.total("repeated"),
        "goodput": fleet.goodput,
        "ettr": fleet.ettr,
        "lost_node_h": whole.lost_h,
        "lost_error_node_h": whole.error_h,
        "lost_node_h_by_cause": dict(whole.lost.most_common()),
        "lost_node_h_by_node": {one.name: one.lost_h for one in fleet.by_node() if one.lost},
        "users": {one.name: _group(one) for one in fleet.by_user()},
        "accounts": {one.name: _group(one) for one in fleet.by_account()},
        "nodes": _named(fleet.by_node()),
        "links_lost": _named(fleet.by_link()),
        "switches": _named(fleet.by_switch()),
        "link_losses": links.failures,
        "link_losses_per_1000_node_h": [1000 * v for v in (links.per_node_hour, low, high)],
        "links": {one.name: one.incidents for one in fleet.by_link() if one.incidents},
        "failures": {kind: _rate(rate) for kind, rate in fleet.failures().items()},
        "waited": fleet.waited() if fleet.attempts else None,
        "lemons": [
            {"node": node, "incidents": count, "expected": mean}
            for node, count, mean in fleet.lemons()
        ],
    }


def _named(groups: Sequence[Group]) -> dict[str, object]:
    """Those that something happened to."""
    return {one.name: _group(one) for one in groups if one.lost or one.incidents}


def _group(one: Group) -> dict[str, object]:
    return {
        "jobs": len(one.jobs),
        "elapsed_node_h": one.elapsed,
        "goodput": one.goodput if one.counted else None,
        "lost_node_h": one.lost_h,
        "lost_error_node_h": one.error_h,
        "lost_node_h_by_cause": dict(one.lost.most_common()),
        "incidents": one.incidents,
    }


def _rate(one: Rate) -> dict[str, object]:
    low, high = one.bounds()
    return {
        "count": one.failures,
        "mtbf_node_h": 1 / one.per_node_hour if one.failures else None,
        "mtbf_low_node_h": 1 / high,
        "mtbf_high_node_h": 1 / low if low else None,
    }
