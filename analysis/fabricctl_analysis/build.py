"""From a trace's path to its report: load, align, summarise, render."""

from collections.abc import Sequence
from pathlib import Path

from fabricctl.slurm.model import Usage
from fabricctl.store.trace import open_trace
from fabricctl_analysis.attempts import attempts_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.load import job_facts, width_for
from fabricctl_analysis.model import Report
from fabricctl_analysis.node_parts import parts_of
from fabricctl_analysis.summarise import Grids, put_together
from fabricctl_analysis.when import When


def report_of(path: Path, usages: Sequence[Usage] = ()) -> Report:
    """Of what can be read; the rest is named in it. ``usages``: the job's, of the accounting.

    Raises :class:`~fabricctl.errors.TraceError`.
    """
    with open_trace(path, partial=True) as trace:
        job = trace.job
        facts = job_facts(trace)
        grids = Grids(job.begin_real_ns, job.end_real_ns)
        parts = parts_of(trace, width_for(trace), grids, facts.nodes)
        attempts = attempts_of(usages, facts.job)
        return put_together(facts, parts, grids, damage=trace.damage, attempts=attempts)


def renderings(
    path: Path,
    wanted: Sequence[str],
    colour: bool = False,
    unicode: bool = True,
    *,
    usages: Sequence[Usage] = (),
) -> dict[str, str]:
    """The report in each of the ``wanted`` forms: ``text``, ``json``, ``html``, ``markdown``."""
    report = report_of(path, usages)
    when = When(report.whole)
    found = findings(report, when)
    texts: dict[str, str] = {}
    for form in wanted:
        if form == "html":
            from fabricctl_analysis.render_html import render_html

            texts[form] = render_html(report, found, when)
        elif form == "markdown":
            from fabricctl_analysis.render_markdown import render_markdown

            texts[form] = render_markdown(report, found, when)
        elif form == "json":
            from fabricctl_analysis.render_json import render_json

            texts[form] = render_json(report, found)
        else:
            from fabricctl_analysis.render_text import Screen, render_text

            texts[form] = render_text(report, found, when, Screen(colour, unicode))
    return texts
