"""Two runs side by side: how much longer one took, and what that time was spent on.

The difference of their times falls apart exactly: into the causes that each lost time to, into more
or less work, and into a usual pace that is itself another.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fabricctl.units import format_duration, format_rate
from fabricctl_analysis import phrases, verdicts
from fabricctl_analysis.build import report_of
from fabricctl_analysis.guard import Texts
from fabricctl_analysis.model import Report

VERSION = 1


@dataclass(frozen=True)
class Side:
    """One run as far as the comparison goes; seconds of the job, not of its nodes."""

    job: int
    who: str
    seconds: float
    nodes: tuple[str, ...]
    coverage: float
    signal: str  # of the pace; "" without accounts
    usual_per_s: float | None
    ideal: float
    lost: dict[str, float]  # by cause and place
    other: dict[str, float]


def side_of(path: Path) -> Texts:
    """One run's side, as text that passes from the reader's process to ours."""
    return {"side": json.dumps(asdict(side(report_of(path))))}


def compared(first: Texts, second: Texts, form: str) -> str:
    """``text`` or ``json``."""
    sides = [json.loads(texts["side"]) for texts in (first, second)]
    made = compare(*(Side(**{**one, "nodes": tuple(one["nodes"])}) for one in sides))
    return render_json(made) if form == "json" else render_text(made)


def side(report: Report) -> Side:
    accounts = report.accounts
    lost: dict[str, float] = defaultdict(float)
    other: dict[str, float] = {}
    scale = 1e9 * max(1, len(report.nodes))
    if accounts is not None:
        for one in accounts.verdicts:
            lost[verdicts.place(one)] += one.loss_ns / scale
        other = {
            "no step ran": accounts.no_step_ns / scale,
            "pace not measured": accounts.unknown_pace_ns / scale,
            "small ups and downs of the pace": accounts.variation_ns / scale,
        }
    return Side(
        job=report.job.job,
        who=f"{phrases.who(report)}, {phrases.took(report)}",
        seconds=report.whole.length_ns / 1e9,
        nodes=tuple(node.name for node in report.nodes),
        coverage=report.coverage,
        signal="" if accounts is None else accounts.signal,
        usual_per_s=None if accounts is None else accounts.usual_per_s,
        ideal=0.0 if accounts is None else accounts.ideal_ns / scale,
        lost=dict(lost),
        other=other,
    )


@dataclass(frozen=True)
class Part:
    """A share of the difference, in seconds of the job: above 0, the second run took longer."""

    what: str
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    first: Side
    second: Side
    parts: tuple[Part, ...]  # the largest first; they add up to `seconds`
    remarks: tuple[str, ...]  # what makes the two hard to compare

    @property
    def seconds(self) -> float:
        return self.second.seconds - self.first.seconds


def compare(first: Side, second: Side) -> Comparison:
    """Without accounts of both only the whole difference is known."""
    if first.signal and second.signal:
        parts = list(_parts(first, second))
    else:
        whole = second.seconds - first.seconds
        parts = [Part("not accounted for", whole, "one of the traces has no accounts")]
    shown = sorted((part for part in parts if part.seconds), key=lambda part: -abs(part.seconds))
    return Comparison(first, second, tuple(shown), tuple(_remarks(first, second)))


def _parts(a: Side, b: Side) -> Iterator[Part]:
    yield from _ideal(a, b)
    for before, after in ((a.lost, b.lost), (a.other, b.other)):
        for what in dict.fromkeys([*before, *after]):
            was, now = before.get(what, 0.0), after.get(what, 0.0)
            yield Part(what, now - was, f"{_s(was)} before, {_s(now)} now")


def _ideal(a: Side, b: Side) -> Iterator[Part]:
    """The time of the work itself: more of it, or a slower pace without any trouble."""
    comparable = a.signal == b.signal and len(a.nodes) == len(b.nodes)
    if not a.usual_per_s or not b.usual_per_s or not comparable:
        yield Part("the work itself", b.ideal - a.ideal, "its amount and pace do not compare")
        return
    work_a, work_b = a.ideal * a.usual_per_s, b.ideal * b.usual_per_s
    more = (work_b - work_a) / a.usual_per_s
    yield Part("more or less work", more, f"{_work(a, work_a)} before, {_work(b, work_b)} now")
    yield Part(
        "another usual pace",
        b.ideal - a.ideal - more,
        f"{_pace(a)} before, {_pace(b)} now, without any trouble that was seen",
    )


def _work(one: Side, amount: float) -> str:
    if one.signal == "iterations":
        return f"{amount:.0f} iterations"
    if one.signal == "mpi":
        return f"{amount:.4g} MPI calls"
    return f"{amount / 1e9:.4g} GB" if one.signal == "traffic" else f"{amount:.4g} core-s"


def _pace(one: Side) -> str:
    usual = one.usual_per_s or 0.0
    if one.signal == "iterations":
        return f"{usual:.3g} iterations a second"
    if one.signal == "mpi":
        return f"{usual:.3g} MPI calls a second"
    return format_rate(usual) if one.signal == "traffic" else f"{usual:.3g} cores"


def _remarks(first: Side, second: Side) -> Iterator[str]:
    if len(first.nodes) != len(second.nodes):
        yield f"the first ran on {len(first.nodes)} nodes, the second on {len(second.nodes)}"
    elif set(first.nodes) != set(second.nodes):
        yield "they ran on different nodes"
    for name, one in (("first", first), ("second", second)):
        if one.coverage < 0.95:
            share = phrases.percent(one.coverage)
            yield f"of the {name} {share} of the nodes' time was measured"


def _s(seconds: float) -> str:
    return format_duration(seconds)


def render_text(made: Comparison) -> str:
    """One screen."""
    lines = [f"A  {made.first.who}", f"B  {made.second.who}"]
    longer = "longer" if made.seconds >= 0 else "shorter"
    base = made.first.seconds
    share = f" ({100 * made.seconds / base:+.1f} %)" if base else ""
    lines += ["", f"B took {format_duration(abs(made.seconds))} {longer}{share}:"]
    width = max((len(part.what) for part in made.parts), default=0)
    for part in made.parts:
        lines.append(f"{part.seconds:+11.2f} s  {part.what:{width}}  {part.why}".rstrip())
    lines.append(f"{sum(part.seconds for part in made.parts):+11.2f} s  all together")
    lines += [f"Note: {remark}." for remark in made.remarks]
    return "\n".join(lines) + "\n"


def render_json(made: Comparison) -> str:
    """docs/report-json.md, "Two runs"."""
    return (
        json.dumps(
            {
                "format": "fabricctl-comparison",
                "version": VERSION,
                "jobs": [made.first.job, made.second.job],
                "seconds": made.seconds,
                "parts": [
                    {"what": part.what, "seconds": part.seconds, "why": part.why}
                    for part in made.parts
                ],
                "remarks": list(made.remarks),
            },
            indent=1,
            allow_nan=False,
        )
        + "\n"
    )
