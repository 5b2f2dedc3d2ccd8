"""Holds the reports of harmed jobs to the truth: precision, recall, place, time to the verdict.

    python -m bench.diagnose.judge DIR [--json results.json] [--quick] [-v]

A fault that cost less than a node-second by the program's own clock had nothing to find. Of faults
at the same time, each must be named: as the cause, or as what was wrong at the same time. A verdict
that names a cause which was not there is wrong. The time to the verdict is found by reading the
trace as it was so many seconds after the fault had begun.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.diagnose.kinds import Harm
from fabricctl.store.trace import open_trace
from fabricctl_analysis.live import judged
from fabricctl_analysis.load import job_facts, node_rows
from fabricctl_analysis.model import JobFacts, Report, Verdict
from fabricctl_analysis.rows import NodeRows
from fabricctl_analysis.summarise import summarise

GOAL = {"precision": 0.982, "recall": 0.993, "place": 0.957}
S = 10**9
BEFORE_NS, AFTER_NS = 2 * S, 4 * S  # windows of a second, and what is caught up afterwards
LIVE_AFTER_NS = 10 * S  # until when what a fault left behind may be told
WORTH_S = 1.0
NO_CAUSE = ("unknown", "start_end")
LATEST_S = 12


@dataclass(frozen=True)
class Job:
    """One harmed job as it was kept."""

    name: str
    facts: JobFacts
    rows: tuple[NodeRows, ...]
    begin_ns: int
    end_ns: int
    harms: tuple[Harm, ...]
    usual_ns: int
    long: tuple[tuple[int, int], ...]  # begin (CLOCK_REALTIME) and length of long iterations
    live: tuple[dict, ...] = ()  # type: ignore[type-arg]  # what `report --follow` said meanwhile

    @classmethod
    def read(cls, path: Path) -> "Job":
        truth = json.loads(path.with_suffix(".json").read_text())
        lines = [line for line in truth["program"].splitlines() if line.startswith("{")]
        told = json.loads(lines[-1]) if lines else {"usual_ns": 0, "long": []}
        shift = truth["mono_to_real_ns"]
        with open_trace(path, partial=True) as trace:
            return cls(
                path.stem,
                job_facts(trace),
                tuple(node_rows(trace)),
                trace.job.begin_real_ns,
                trace.job.end_real_ns,
                tuple(Harm(**one) for one in truth["harms"]),
                told["usual_ns"],
                tuple((at + shift, ns) for at, ns in told["long"]),
                tuple(truth.get("live", ())),
            )

    def report(self) -> Report:
        return summarise(self.facts, self.rows, self.begin_ns, self.end_ns)

    def report_at(self, until_ns: int) -> Report | None:
        """What `--follow` would have made of the rows that there were at an instant."""
        rows = [_until(one, until_ns) for one in self.rows]
        whole = judged(rows)
        return whole and summarise(self.facts, rows, whole.begin_ns, whole.end_ns)

    def lost_s(self, harms: Sequence[Harm]) -> float:
        """Node-seconds, by the program's own clock."""
        begin, end = min(h.begin_ns for h in harms), max(h.end_ns for h in harms)
        lost = sum(
            ns - self.usual_ns for at, ns in self.long if begin - S // 10 <= at + ns and at <= end
        )
        return len(self.facts.nodes) * lost / S

    def cases(self) -> Iterator[list[Harm]]:
        """Faults that were there at the same time go together."""
        case: list[Harm] = []
        for harm in sorted(self.harms, key=lambda one: one.begin_ns):
            if case and harm.begin_ns > max(one.end_ns for one in case):
                yield case
                case = []
            case.append(harm)
        if case:
            yield case


def _until(rows: NodeRows, end_ns: int) -> NodeRows:
    keep = {name: times <= end_ns for name, times in rows.real_ns.items()}
    return replace(
        rows,
        tables={name: table[keep[name]] for name, table in rows.tables.items()},
        real_ns={name: times[keep[name]] for name, times in rows.real_ns.items()},
        end_ns=end_ns,
    )


def near(verdicts: Sequence[Verdict], harms: Sequence[Harm]) -> list[Verdict]:
    return [one for one in verdicts if _shared(one, harms) > 0]


def _shared(one: Verdict, harms: Sequence[Harm]) -> int:
    begin, end = min(h.begin_ns for h in harms), max(h.end_ns for h in harms)
    return min(one.end_ns, end + AFTER_NS) - max(one.begin_ns, begin - BEFORE_NS)


def by_case(verdicts: Sequence[Verdict], cases: Sequence[list[Harm]]) -> list[list[Verdict]]:
    """Each verdict goes with the faults that it shares most time with; the last: with none."""
    found: list[list[Verdict]] = [[] for _ in range(len(cases) + 1)]
    for one in verdicts:
        shared = [_shared(one, case) for case in cases]
        best = max(range(len(cases)), key=shared.__getitem__, default=len(cases))
        found[best if cases and shared[best] > 0 else -1].append(one)
    return found


def names(one: Verdict, harm: Harm) -> tuple[bool, bool]:
    """Whether a verdict names a fault, and its place."""
    told = [(one.cause, one.nodes, one.rail), *((w.cause, w.nodes, w.rail) for w in one.others)]
    mine = [(nodes, rail) for cause, nodes, rail in told if cause in harm.of.causes]
    if harm.of.place == "all":
        return bool(mine), bool(mine)
    if harm.of.place == "rail":
        return bool(mine), any(rail == 0 for _, rail in mine)
    rails = (None, 0) if harm.of.place == "node" else (0,)
    return bool(mine), any(harm.node in nodes and len(nodes) <= 2 and rail in rails
                           for nodes, rail in mine)  # fmt: skip


def judge_case(  # type: ignore[type-arg]
    job: Job, case: list[Harm], there: Sequence[Verdict], verdicts: Sequence[Verdict], quick: bool
) -> dict:
    lost_s = job.lost_s(case)
    allowed = {cause for harm in case for cause in harm.of.causes}
    if len(case) > 1:  # beside what stops the program some cannot be seen
        rail = any(harm.of.place == "rail" for harm in case)
        case = [
            harm for harm in case
            if not harm.of.alone and not (rail and harm.of.place == "link")
        ] or case  # fmt: skip
    # One verdict may span two faults of one kind at one place, seconds apart.
    found = [[names(one, harm) for one in near(verdicts, case)] for harm in case]
    wrong = [one for one in there if one.cause not in (*allowed, *NO_CAUSE)]
    record = {
        "job": job.name,
        "faults": [f"{harm.kind} {harm.node}" for harm in case],
        "lost_s": round(lost_s, 2),
        "said_s": round(sum(one.loss_ns for one in there) / S, 2),
        "said": [f"{v.cause} {','.join(v.nodes)} r{v.rail} {v.loss_ns / S:.1f}" for v in there],
        "cost": lost_s >= WORTH_S,
        "named": [any(named for named, _ in one) for one in found],
        "placed": [any(placed for _, placed in one) for one in found],
        "wrong": [f"{one.cause} {','.join(one.nodes)}" for one in wrong],
    }
    if not quick and all(record["named"]) and record["cost"]:  # type: ignore[arg-type]
        record["verdict_s"] = verdict_s(job, case)
        record["live_s"] = live_s(job, case)
    return record


def verdict_s(job: Job, case: list[Harm]) -> float | None:
    """Seconds from a fault's begin until a report names the cause and the place; None also where
    it did so before, because of another fault."""
    begin_ns = min(harm.begin_ns for harm in case)
    for quarter in range(4 * LATEST_S):
        report = job.report_at(begin_ns + quarter * S // 4)
        accounts = report.accounts if report else None
        verdicts = near(accounts.verdicts, case) if accounts else []
        if any(names(one, case[0]) == (True, True) for one in verdicts):
            return quarter / 4 or None
    return None


def live_s(job: Job, case: list[Harm]) -> float | None:
    """Seconds from a fault's begin until `report --follow` had told its cause and place."""
    begin, end = min(h.begin_ns for h in case), max(h.end_ns for h in case)
    right = [
        one["told_real_ns"] for one in job.live
        if begin < one["told_real_ns"] < end + LIVE_AFTER_NS and one["cause"] in case[0].of.causes
        and (case[0].of.place in ("all", "rail") or case[0].node in one["nodes"])
    ]  # fmt: skip
    return round((min(right) - begin) / S, 2) if right else None


def live_wrong(job: Job) -> list[str]:
    """What `report --follow` told and nothing in the job was."""
    return [
        f"{one['cause']} {','.join(one['nodes'])}" for one in job.live
        if not any(
            one["cause"] in harm.of.causes
            and harm.begin_ns < one["told_real_ns"] < harm.end_ns + LIVE_AFTER_NS
            for harm in job.harms
        )
    ]  # fmt: skip


def judge(job: Job, quick: bool) -> Iterator[dict]:  # type: ignore[type-arg]
    accounts = job.report().accounts
    verdicts = accounts.verdicts if accounts else ()
    cases = list(job.cases())
    *of_cases, left = by_case(verdicts, cases)
    for case, there in zip(cases, of_cases, strict=True):
        yield judge_case(job, case, there, verdicts, quick)
    left = [one for one in left if one.cause not in NO_CAUSE]
    alarms = [f"{v.cause} {','.join(v.nodes)} {v.loss_ns / S:.1f}" for v in left]
    said = {"live_told": len(job.live), "live_wrong": live_wrong(job)}
    yield {"job": job.name, "healthy": not job.harms, "alarms": alarms, **said}


def figures(records: Sequence[dict]) -> dict[str, object]:  # type: ignore[type-arg]
    cases = [one for one in records if "faults" in one]
    cost = [one for one in cases if one["cost"]]
    pairs = [one for one in cost if len(one["faults"]) > 1]
    named = sum(sum(one["named"]) for one in cost)
    missed = sum(len(one["named"]) for one in cost) - named
    wrong = sum(len(one["wrong"]) for one in cases)
    wrong += sum(len(one.get("alarms", ())) for one in records)
    placed = sum(sum(one["placed"]) for one in cost)
    times = [one["verdict_s"] for one in cost if one.get("verdict_s")]
    live = sorted(one["live_s"] for one in cost if one.get("live_s"))
    errors = [one["said_s"] / one["lost_s"] - 1 for one in cost]
    healthy = [one for one in records if one.get("healthy")]
    return {
        "faults": sum(len(one["faults"]) for one in cases),
        "of which cost something": named + missed,
        "pairs": len(pairs),
        "healthy jobs": len(healthy),
        "healthy jobs with an alarm": sum(bool(one["alarms"]) for one in healthy),
        "precision": named / max(1, named + wrong),
        "recall": named / max(1, named + missed),
        "place": placed / max(1, named),
        "verdict_s median": statistics.median(times) if times else None,
        "verdict_s p90": sorted(times)[int(0.9 * len(times))] if times else None,
        "told live": sum(one.get("live_told", 0) for one in records),
        "of that wrong": sum(len(one.get("live_wrong", ())) for one in records),
        "faults told live": len(live),
        "live_s median": statistics.median(live) if live else None,
        "live_s p90": live[int(0.9 * len(live))] if live else None,
        "loss error median": statistics.median(errors) if errors else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="Without the time to verdicts.")
    parser.add_argument("-v", "--verbose", action="store_true", help="Right ones too.")
    given = parser.parse_args()
    records = []
    for path in sorted(given.kept.glob("*.h5")):
        for one in judge(Job.read(path), given.quick):
            records.append(one)
            good = not (one.get("wrong") or one.get("alarms") or one.get("live_wrong"))
            good &= "faults" not in one or not one["cost"] or all([*one["named"], *one["placed"]])
            if given.verbose or not good:
                print(json.dumps(one))
    kinds = Counter[tuple[str, str]]()
    for one in (one for one in records if "faults" in one):
        for fault, named, placed in zip(one["faults"], one["named"], one["placed"], strict=True):
            state = "free" if not one["cost"] else "placed" if placed else "named" if named else ""
            kinds[fault.split()[0], state or "missed"] += 1
    states = ("placed", "named", "missed", "free")
    print(f"{'fault':14}" + "".join(f"{state:>8}" for state in states))
    for kind in sorted({kind for kind, _ in kinds}):
        print(f"{kind:14}" + "".join(f"{kinds[kind, state]:8}" for state in states))
    told = figures(records)
    for name, value in told.items():
        text = f"{value:.1%}" if name in GOAL or ("error" in name and value is not None) else value
        goal = f"  goal {GOAL[name]:.1%}" if name in GOAL else ""
        print(f"{name:28} {text}{goal}")
    if given.json:
        given.json.write_text(json.dumps({"figures": told, "records": records}, indent=1))
    return 0 if all(told[name] >= value for name, value in GOAL.items()) else 1  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
