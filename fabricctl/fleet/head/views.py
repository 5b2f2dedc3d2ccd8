"""What the head answers, cut to what the caller may see. Pure."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fabricctl import hostlist
from fabricctl.fleet.access import Who
from fabricctl.fleet.head.message import STATES
from fabricctl.fleet.head.table import Table
from fabricctl.fleet.overview import Finding, node_state, overview
from fabricctl.sections import AccessConfig
from fabricctl.slurm.model import FINISHED, Job, Node
from fabricctl.units import format_duration

VERSION = 1


@dataclass(frozen=True)
class SlurmView:
    """Slurm at one time; ``trouble``: why there is no newer one."""

    nodes: Sequence[Node] = ()
    jobs: Sequence[Job] = ()
    cluster: str = "?"
    at_s: float = 0.0  # monotonic
    trouble: str = ""
    version: str = "?"


def status(table: Table, slurm: SlurmView, now_s: float) -> dict[str, object]:
    """What ``status`` shows: everybody may see it."""
    findings = [*link_findings(table, now_s), *([_away(slurm)] if slurm.trouble else [])]
    found = overview(slurm.nodes, slurm.jobs, time.time(), findings)
    running = {job.id for job in slurm.jobs if job.state not in FINISHED}
    protected = {each.job for row in table.rows.values() if not table.is_stale(row, now_s)
                 for each in row.report.jobs}  # fmt: skip
    return {
        "version": VERSION,
        "cluster": slurm.cluster,
        "slurm": slurm.version,
        "slurm_age_s": round(now_s - slurm.at_s, 1) if slurm.at_s else None,
        "slurm_trouble": slurm.trouble,
        "worst": found.worst,
        **asdict(found),
        "rails": rail_totals(table, now_s)[0],
        "protected_jobs": len(protected & running),
        "reports": reports(table, slurm, now_s),
    }


def snapshot(
    table: Table, slurm: SlurmView, caller: Who, access: AccessConfig, now_s: float
) -> dict[str, object]:
    """Everything that ``top`` shows. Rows are lists, in the order of the named columns."""
    findings = [*link_findings(table, now_s), *([_away(slurm)] if slurm.trouble else [])]
    found = overview(slurm.nodes, slurm.jobs, time.time(), findings)
    seen = [job for job in slurm.jobs if job.state not in FINISHED
            and caller.sees_job(job.user, job.account, access)]  # fmt: skip
    return {
        "version": VERSION,
        "cluster": slurm.cluster,
        "user": caller.user,
        "role": caller.role,
        "slurm_age_s": round(now_s - slurm.at_s, 1) if slurm.at_s else None,
        "slurm_trouble": slurm.trouble,
        "reports": reports(table, slurm, now_s),
        "states": dict(found.nodes),
        "jobs_by_state": dict(found.jobs),
        "findings": [[f.severity, f.text] for f in found.findings[:200]],
        "nodes": node_rows(table, slurm, now_s),
        "links": link_rows(table, now_s),
        "jobs": job_rows(table, seen, now_s),
    }


NODE_COLUMNS = ("node", "state", "jobs", "cpus", "load", "mem_mib", "free_mib", "rails_down",
                "rx_bytes_per_s", "tx_bytes_per_s", "age_s", "reason")  # fmt: skip
LINK_COLUMNS = ("node", "rail", "state", "rx_bytes_per_s", "tx_bytes_per_s", "errors", "age_s")
JOB_COLUMNS = ("job", "user", "account", "name", "state", "nodes", "cpus", "elapsed_s",
               "protected", "rails_down", "rx_bytes_per_s", "tx_bytes_per_s", "where")  # fmt: skip


def node_rows(table: Table, slurm: SlurmView, now_s: float) -> list[list[object]]:
    """Slurm's nodes, and those that report and Slurm does not know."""
    running: Counter[str] = Counter()
    for job in slurm.jobs:
        if job.state not in FINISHED:
            running.update(job.nodes)
    known = {node.name: node for node in slurm.nodes}
    rows = []
    for name in sorted(known.keys() | table.rows.keys()):
        node, row = known.get(name), table.rows.get(name)
        state = node_state(node) if node else "not in Slurm"
        reason = (node.reason or "") if node else ""
        head: list[object] = [name, state, running[name]]
        if row is None or table.is_stale(row, now_s):
            age = None if row is None else round(now_s - row.at_s, 1)
            cpus = node.cpus if node else None
            rows.append([*head, cpus, None, None, None, None, None, None, age, reason])
            continue
        report = row.report
        down = sum(rail.state != "up" for rail in report.rails)
        rx, tx = (sum(getattr(rail, key) for rail in report.rails)
                  for key in ("rx_bytes_per_s", "tx_bytes_per_s"))  # fmt: skip
        rows.append([*head, report.cpus, report.load, report.memory_mib, report.free_mib, down,
                     rx, tx, round(now_s - row.at_s, 1), reason])  # fmt: skip
    return rows


def link_rows(table: Table, now_s: float) -> list[list[object]]:
    """Every rail of every node that reports."""
    return [
        [name, rail.name, rail.state, rail.rx_bytes_per_s, rail.tx_bytes_per_s, rail.errors,
         round(now_s - row.at_s, 1)]
        for name, row in sorted(table.rows.items()) if not table.is_stale(row, now_s)
        for rail in row.report.rails
    ]  # fmt: skip


def job_rows(table: Table, jobs: Sequence[Job], now_s: float) -> list[list[object]]:
    """Jobs with the traffic of their nodes' rails; of protected ones how many agents are there."""
    protected: dict[int, int] = {}
    for row in table.rows.values():
        if not table.is_stale(row, now_s):
            for each in row.report.jobs:
                protected[each.job] = max(protected.get(each.job, 0), each.protected)
    now_real_s = time.time()
    rows = []
    for job in jobs:
        mine = [table.rows[n] for n in job.nodes if n in table.rows]
        rails = [r for row in mine if not table.is_stale(row, now_s) for r in row.report.rails]
        elapsed = max(0, int(now_real_s) - job.start_real_s) if job.start_real_s else None
        rows.append([
            job.id, job.user, job.account, job.name, job.state, job.node_count, job.cpus, elapsed,
            protected.get(job.id), sum(r.state != "up" for r in rails) if rails else None,
            sum(r.rx_bytes_per_s for r in rails) if rails else None,
            sum(r.tx_bytes_per_s for r in rails) if rails else None,
            hostlist.fold(job.nodes) if job.nodes else (job.reason or ""),
        ])  # fmt: skip
    return rows


def reports(table: Table, slurm: SlurmView, now_s: float) -> dict[str, object]:
    """How well nodes are heard."""
    stale = sum(table.is_stale(row, now_s) for row in table.rows.values())
    silent = sum(node.name not in table.rows for node in slurm.nodes)
    return {"fresh": len(table.rows) - stale, "stale": stale, "never": silent,
            "interval_s": table.wanted_s(), "taken": table.taken,
            "refused": table.refused}  # fmt: skip


def rail_totals(table: Table, now_s: float) -> tuple[dict[str, int], int, int]:
    """Rails by state, and bytes per second received and sent, of all nodes together."""
    states = dict.fromkeys(STATES, 0)
    rx = tx = 0
    for row in table.rows.values():
        if table.is_stale(row, now_s):
            continue
        for rail in row.report.rails:
            states[rail.state] += 1
            rx += rail.rx_bytes_per_s
            tx += rail.tx_bytes_per_s
    return states, rx, tx


def link_findings(table: Table, now_s: float) -> list[Finding]:
    """Rails that are down, told as one for each rail's name; nodes that stopped to report."""
    down: dict[tuple[str, str], list[str]] = {}
    stale = []
    for name, row in table.rows.items():
        if table.is_stale(row, now_s):
            stale.append(name)
            continue
        for rail in row.report.rails:
            if rail.state != "up":
                down.setdefault((rail.name, rail.state), []).append(name)
    found = []
    for (rail_name, state), names in sorted(down.items()):
        verb = {"no carrier": "has no carrier", "off": "is switched off", "gone": "is gone"}[state]
        said = f"rail {rail_name} {verb} on {hostlist.fold(names)}"
        found.append(Finding("error", "rail_down", said, tuple(sorted(names))))
    if stale:
        ago = format_duration(max(now_s - table.rows[name].at_s for name in stale))
        said = f"{hostlist.fold(stale)} stopped to report, up to {ago} ago"
        found.append(Finding("warning", "node_silent", said, tuple(sorted(stale))))
    return found


def _away(slurm: SlurmView) -> Finding:
    return Finding("error", "slurm_away", f"Slurm does not answer: {slurm.trouble}")


def columns() -> Mapping[str, Sequence[str]]:
    """Names of the columns of each table."""
    return {"nodes": NODE_COLUMNS, "links": LINK_COLUMNS, "jobs": JOB_COLUMNS}
