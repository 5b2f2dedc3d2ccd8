"""Many jobs on one screen."""

from collections.abc import Callable, Iterator, Sequence

from fabricctl_analysis.fleet_sums import FAILURES, Fleet, Group
from fabricctl_analysis.plan_model import Rate
from fabricctl_analysis.verdicts import CAUSES

MAX_ROWS = 10
_NAME = 28
_GROUPS: dict[str, Callable[[Fleet], list[Group]]] = {
    "user": Fleet.by_user,
    "account": Fleet.by_account,
    "node": Fleet.by_node,
    "link": Fleet.by_link,
    "switch": Fleet.by_switch,
}
_JOBS = ("user", "account")  # groups of whole jobs; the others are places


def lines(made: Fleet, title: str, by: Sequence[str] = ()) -> Iterator[str]:
    """``by``: only these groups, each in full."""
    elapsed = made.total("elapsed")
    yield f"{title}: {elapsed:.1f} node-h"
    for one in made.failed[:MAX_ROWS]:
        yield f"not read: {one.error}"
    if len(made.failed) > MAX_ROWS:
        yield f"and {len(made.failed) - MAX_ROWS} more that were not read: --json"
    if not made.digests:
        return
    if not by:
        yield from _whole(made, elapsed)
    for name in by or _GROUPS:
        groups = _GROUPS[name](made)
        if name not in _JOBS:
            groups = [one for one in groups if one.lost or one.incidents]
        if groups:
            yield from _group(name, groups, None if by else MAX_ROWS)
        elif by:
            yield f"\nby {name}: {_WHY_NONE[name]}"
    if not by:
        yield from _often(made)


_WHY_NONE = {
    "user": "no job",
    "account": "the accounting was not asked, or knows none of these jobs",
    "node": "nothing was lost in a node",
    "link": "nothing was lost on a link",
    "switch": "the inventory knows no switches, or nothing was lost below one",
}


def _whole(made: Fleet, elapsed: float) -> Iterator[str]:
    whole = made.whole
    yield ""
    yield f"{'WHERE THE TIME WENT':34}{'node-h':>12}{'share':>9}"
    rows = [("work at the usual pace", made.total("ideal"))]
    rows += [(f"lost: {_cause(cause)}", hours) for cause, hours in whole.lost.most_common()]
    rows += [("no step ran", made.total("no_step")), ("not known", made.total("not_known"))]
    for what, hours in rows:
        yield f"{what:34}{hours:12.3f}{_share(hours, elapsed):>9}"
    if made.total("repeated"):
        yield f"of that work computed twice, after failures: {made.total('repeated'):.3f} node-h"
    words = f"Lost {whole.lost_h:.3f} +- {whole.error_h:.2g} node-h (95 %)"
    if made.goodput is not None:
        words += f"; goodput {made.goodput:.3f}"
    if made.ettr is not None:
        words += f"; ETTR of programs by fabricctl run {made.ettr:.3f}"
    yield f"{words}."
    if made.attempts:
        waited = made.waited()
        yield (
            f"In Slurm's queue: {waited['queue_h']:.2f} h before the first start, "
            f"{waited['requeue_h']:.2f} h between attempts; {waited['preempted']:.0f} attempts "
            f"preempted ({waited['preempted_node_h']:.3f} node-h)."
        )


def _group(name: str, groups: Sequence[Group], most: int | None) -> Iterator[str]:
    jobs = name in _JOBS
    yield ""
    count = "jobs" if jobs else "incidents"
    goodput = f"{'goodput':>9}" if jobs else ""
    head = f"{name.upper():{_NAME}}{'node-h':>11}{goodput}{'lost':>10}{'+- 95 %':>9}"
    yield f"{head}{count:>11}  most to"
    for one in groups[:most]:
        top = one.lost.most_common(1)
        share = f"{'-' if one.goodput is None else f'{one.goodput:.3f}':>9}" if jobs else ""
        number = len(one.jobs) if jobs else one.incidents
        yield (
            f"{one.name[-_NAME + 1 :]:{_NAME}}{one.elapsed:11.2f}{share}{one.lost_h:10.3f}"
            f"{one.error_h:9.2g}{number:11}  {_cause(top[0][0]) if top else '-'}"
        )
    if most is not None and len(groups) > most:
        yield f"and {len(groups) - most} more: --by {name}"


def _often(made: Fleet) -> Iterator[str]:
    yield ""
    for node, count, mean in made.lemons():
        yield f"LEMON {node}: {count} incidents, where chance gives {mean:.2g}: take it out"
    links = made.links()
    low, high = (1000 * bound for bound in links.bounds())
    yield (
        f"Links were lost {links.failures} times: {1000 * links.per_node_hour:.3g} "
        f"({low:.3g} to {high:.3g}) in 1,000 node-h."
    )
    rates = made.failures()
    for kind, rate in rates.items():
        if kind != "nodes":
            yield f"{FAILURES[kind]}: {rate.failures} times; MTBF {_mtbf(rate)}."
    yield f"MTBF of a node: {_mtbf(rates['nodes'])}."
    nodes = rates["nodes"]
    yield (
        f"Before the next job: fabricctl plan --failures {nodes.failures} "
        f"--node-hours {nodes.node_hours:.6g} --nodes N --hours H"
    )


def _mtbf(rate: Rate) -> str:
    low, high = rate.bounds()
    if not rate.failures:
        return f"above {1 / high:,.1f} node-h (none failed in {rate.node_hours:,.1f})"
    return f"{1 / rate.per_node_hour:,.1f} ({1 / high:,.1f} to {1 / low:,.1f}) node-h"


def _cause(name: str) -> str:
    return CAUSES.get(name, name)  # type: ignore[call-overload,no-any-return]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
