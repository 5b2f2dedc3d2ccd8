"""The report for programs: the shape is documented in docs/report-json.md."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from fabricctl_analysis import clock_words, render_moves
from fabricctl_analysis.attempts import TAKEN, cost_node_h
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.links import Down
from fabricctl_analysis.model import (
    Accounts,
    Figure,
    Finding,
    NodeSummary,
    RailSummary,
    Report,
    Verdict,
)
from fabricctl_analysis.verdicts import advice
from fabricctl_analysis.when import iso

VERSION = 1

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def render_json(report: Report, found: Sequence[Finding]) -> str:
    """One JSON object and a newline; numbers are finite, what was not measured is null."""
    return json.dumps(document(report, found), indent=1, allow_nan=False) + "\n"


def document(report: Report, found: Sequence[Finding]) -> dict[str, Json]:
    """The report as plain values."""
    begin = report.whole.begin_ns
    return {
        "format": "fabricctl-report",
        "version": VERSION,
        "job": _job(report),
        "clock": _clock(report),
        "job_clock": clock_words.json_section(report),
        "coverage": {"value": report.coverage, "unit": "1"},
        "findings": [_finding(one, begin) for one in found],
        "accounts": _accounts(report, begin),
        "attempts": [_attempt(report, nth) for nth in range(len(report.attempts))],
        "advice": list(advice(report)),
        "nodes": [_node(node, begin) for node in report.nodes],
        "rails": [_rail(rail, begin) for rail in report.rails],
        "link_events": [
            {"node": m.node, "rail": m.rail, "event": m.event, **_at("at", m.at_ns, begin)}
            for m in report.marks
        ],
        "paths": render_moves.document(report, begin),
        "steps": [
            {
                "step": step.step,
                "nodes": list(step.nodes),
                **_at("begin", step.begin_ns, begin),
                **_at("end", step.end_ns, begin),
            }
            for step in report.steps
        ],
        "notes": [
            {
                "node": remark.node,
                "severity": remark.severity,
                "source": remark.source,
                "text": remark.text,
                **_at("at", remark.at_ns, begin),
            }
            for remark in report.remarks
        ],
        "not_measured": [
            {
                "nodes": list(one.nodes),
                "what": one.what,
                "why": one.why,
                **_span(one.span, begin),
            }
            for one in report.unmeasured
        ],
    }


def _attempt(report: Report, nth: int) -> Json:
    one = report.attempts[nth]
    low, high = cost_node_h(report, nth) if one.state in TAKEN else (None, None)
    return {**asdict(one), "lost_low_node_h": low, "lost_high_node_h": high}


def _job(report: Report) -> Json:
    job, begin = report.job, report.whole.begin_ns
    return {
        "job": job.job,
        "array": job.array,
        "het": job.het,
        "requeue": job.requeue,
        "user": job.user,
        "cluster": job.cluster,
        "mode": job.mode,
        "spares": job.spares,
        "nodes": list(job.nodes),
        "source": job.source,
        "schema_version": job.schema_version,
        **_span(report.whole, begin),
    }


def _clock(report: Report) -> Json:
    begin = report.whole.begin_ns
    return {
        "basis": "CLOCK_REALTIME of each node",
        "between_nodes_error_ns": clock_words.between_nodes_ns(report),
        "within_node_error_ns": report.clock_error_ns,
        "steps": [
            {
                "node": node,
                "size_ns": step.size_ns,
                **_at("begin", step.begin_real_ns, begin),
                **_at("end", step.end_real_ns, begin),
            }
            for node, step in report.clock_steps
        ],
    }


def _finding(one: Finding, begin: int) -> Json:
    return {
        "severity": one.severity,
        "kind": one.kind,
        "nodes": list(one.nodes),
        "rail": one.rail,
        "text": one.text,
        **_at("begin", one.begin_ns, begin),
        **_at("end", one.end_ns, begin),
    }


def _accounts(report: Report, begin: int) -> Json:
    accounts = report.accounts
    if accounts is None:
        return None
    return {
        "unit": "node-s",
        "signal": accounts.signal,
        "window_s": accounts.window_ns / 1e9,
        "iteration_s": accounts.iteration_s,
        "pace_deviation": accounts.deviation,
        "usual_per_s": accounts.usual_per_s,
        "elapsed_ns": accounts.elapsed_ns,
        "ideal_ns": accounts.ideal_ns,
        "variation_ns": accounts.variation_ns,
        "no_step_ns": accounts.no_step_ns,
        "pace_not_measured_ns": accounts.unknown_pace_ns,
        "ranks": accounts.ranks,
        "verdicts": [_verdict(one, accounts, begin) for one in accounts.verdicts],
        "without_loss": [_verdict(one, accounts, begin) for one in accounts.harmless],
    }


def _verdict(one: Verdict, accounts: Accounts, begin: int) -> Json:
    interval = {"": one.loss_ns, "_low": one.low_ns, "_high": one.high_ns}
    return {
        "cause": one.cause,
        "nodes": list(one.nodes),
        "rail": one.rail,
        **_span(Span(one.begin_ns, one.end_ns), begin),
        "loss_ns": one.loss_ns,
        "loss_low_ns": one.low_ns,
        "loss_high_ns": one.high_ns,
        **{f"loss{name}_node_h": ns / 3.6e12 for name, ns in interval.items()},
        **{f"loss{name}_rank_s": accounts.rank_s(ns) for name, ns in interval.items()},
        "certainty": one.certainty,
        "evidence": list(one.evidence),
        "also": list(one.also),
        "others": [
            {"cause": other.cause, "nodes": list(other.nodes), "rail": other.rail}
            for other in one.others
        ],
        "coverage": one.coverage,
    }


def _node(node: NodeSummary, begin: int) -> Json:
    return {
        "node": node.name,
        "measured": [_span(span, begin) for span in node.measured],
        "sample_period_s": None if node.period_ns is None else node.period_ns / 1e9,
        "agent_lives": node.agent_lives,
        "clock_error_ns": node.clock_error_ns,
        "figures": {name: _figure(figure) for name, figure in node.figures.items()},
    }


def _rail(rail: RailSummary, begin: int) -> Json:
    return {
        "node": rail.node,
        "rail": rail.index,
        "interface": rail.interface,
        "carrier_measured": rail.link.measured,
        "carrier_changes": rail.link.changes,
        "down": [_down(down, begin) for down in rail.link.downs],
        "missed_changes": [
            {"changes": missed.changes, **_span(Span(missed.begin_ns, missed.end_ns), begin)}
            for missed in rail.link.missed
        ],
        "counters": {name: _figure(figure) for name, figure in rail.counters.items()},
        "peaks": {name: _figure(figure) for name, figure in rail.peaks.items()},
    }


def _down(down: Down, begin: int) -> Json:
    return {
        "cause": down.cause,
        **_at("begin", down.begin_ns, begin),
        "begin_error_s": down.begin_error_ns / 1e9,
        "begin_source": down.begin_source,
        **_at("end", down.end_ns, begin),
        "end_error_s": None if down.end_ns is None else down.end_error_ns / 1e9,
        "end_source": None if down.end_ns is None else down.end_source,
    }


def _figure(figure: Figure) -> Json:
    return {
        "value": figure.value,
        "unit": figure.unit,
        "at_least": figure.at_least,
        "readings": figure.readings,
        "readings_not_measured": figure.not_measured,
    }


def _at(name: str, at_ns: int | None, begin: int) -> dict[str, Json]:
    """An instant twice: on the clock to the nanosecond, and in seconds since the job began."""
    if at_ns is None:
        return {name: None, f"{name}_s": None}
    return {name: iso(at_ns), f"{name}_s": (at_ns - begin) / 1e9}


def _span(span: Span | None, begin: int) -> dict[str, Json]:
    ends = (None, None) if span is None else (span.begin_ns, span.end_ns)
    return {**_at("begin", ends[0], begin), **_at("end", ends[1], begin)}
