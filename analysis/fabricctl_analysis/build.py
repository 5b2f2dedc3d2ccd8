"""From a trace's path to its report: load, align, summarise."""

from pathlib import Path

from fabricctl.store.trace import open_trace
from fabricctl_analysis.load import job_facts, node_rows
from fabricctl_analysis.model import Report
from fabricctl_analysis.summarise import summarise


def report_of(path: Path) -> Report:
    """Raises :class:`~fabricctl.errors.TraceError`."""
    with open_trace(path) as trace:
        job = trace.job
        return summarise(job_facts(trace), node_rows(trace), job.begin_real_ns, job.end_real_ns)
