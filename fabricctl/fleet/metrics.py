"""The cluster's state as OpenMetrics (https://prometheus.io/docs/specs/om/open_metrics_spec/).

Labels are states and kinds that this code knows, never names of nodes, jobs or users: the number of
series does not grow with the cluster.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fabricctl.fleet.overview import OURS, SEVERITIES, Overview
from fabricctl.slurm.model import Node

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
NODE_STATES = ("idle", "mixed", "allocated", "draining", "drained", "down", "powered down",
               "unknown")  # fmt: skip
JOB_STATES = ("running", "ending", "waiting")
FINDING_KINDS = ("node_down", "node_drained", "job_stuck", "rail_down", "node_silent")
# name: (type, what it is)
METRICS: Mapping[str, tuple[str, str]] = {
    "fabricctl_up": ("gauge", "1: Slurm answered this time."),
    "fabricctl_nodes": ("gauge", "Nodes by state; states overlap nowhere."),
    "fabricctl_nodes_drained_by_us": ("gauge", "Nodes whose reason begins with fabric:."),
    "fabricctl_cpus": ("gauge", "CPUs of all nodes, and of them allocated."),
    "fabricctl_jobs": ("gauge", "Jobs that have not ended, by state."),
    "fabricctl_findings": ("gauge", "Open findings of fabricctl status, by kind."),
    "fabricctl_findings_worst": ("gauge", "The heaviest: 0 none, 1 info, 2 warning, 3 error."),
    "fabricctl_rails": ("gauge", "Rails of all nodes that report to fabricd, by state."),
    "fabricctl_rail_bytes_per_second": ("gauge", "Traffic of all rails together."),
    "fabricctl_node_reports": ("gauge", "Nodes by whether fabricd hears them."),
    "fabricctl_gather_seconds": ("gauge", "How long Slurm took to answer."),
}

_OF_HEAD = ("fabricctl_rails", "fabricctl_rail_bytes_per_second", "fabricctl_node_reports")


def render(
    found: Overview | None,
    nodes: Sequence[Node],
    took_s: float,
    more: Mapping[tuple[str, str, str], float] | None = None,
) -> str:
    """The text of one scrape; ``found`` None: Slurm did not answer, and nothing is made up.

    ``more``: samples by (metric, label, value), of what fabricd knows.
    """
    samples = {name: list(_samples(name, found, nodes, took_s)) for name in METRICS}
    for (name, label, value), number in (more or {}).items():
        samples[name].append(_one(name, label, value, number))
    lines = []
    for name, (kind, doc) in METRICS.items():
        if not samples[name] and name in _OF_HEAD and more is None:
            continue
        lines += [f"# TYPE {name} {kind}", f"# HELP {name} {doc}", *samples[name]]
    return "\n".join([*lines, "# EOF", ""])


def _samples(
    name: str, found: Overview | None, nodes: Sequence[Node], took_s: float
) -> Iterator[str]:
    if name == "fabricctl_up":
        yield f"{name} {int(found is not None)}"
    elif name == "fabricctl_gather_seconds":
        yield f"{name} {took_s:.6f}"
    if found is None:
        return
    if name == "fabricctl_nodes":
        yield from (_one(name, "state", word, found.nodes.get(word, 0)) for word in NODE_STATES)
    elif name == "fabricctl_jobs":
        yield from (_one(name, "state", word, found.jobs.get(word, 0)) for word in JOB_STATES)
    elif name == "fabricctl_nodes_drained_by_us":
        yield f"{name} {sum((node.reason or '').startswith(OURS) for node in nodes)}"
    elif name == "fabricctl_cpus":
        yield _one(name, "state", "all", sum(node.cpus for node in nodes))
        yield _one(name, "state", "allocated", sum(node.cpus_allocated for node in nodes))
    elif name == "fabricctl_findings":
        counts = Counter(one.kind for one in found.findings)
        yield from (_one(name, "kind", kind, counts[kind]) for kind in FINDING_KINDS)
    elif name == "fabricctl_findings_worst":
        worst = 0 if found.worst is None else len(SEVERITIES) - SEVERITIES.index(found.worst)
        yield f"{name} {worst}"


def _one(name: str, label: str, value: str, number: float) -> str:
    return f'{name}{{{label}="{value}"}} {number:.15g}'
