"""What link failover saved, and what no other rail could have."""

from collections.abc import Iterator

from fabricctl.units import format_duration
from fabricctl_analysis import coverage
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import Accounts, Cause, Finding, Report
from fabricctl_analysis.verdicts import amount

# Nothing passes such a rail: what waits on it waits until it is whole. One that is slow or loses
# packets lets some through, and nobody knows how long the streams would have taken.
_NOTHING_PASSES = ("carrier", "silent")
_NETWORK: tuple[Cause, ...] = ("link_down", "path", "queueing", "rail_slow")
_NO_RAIL_HELPS: tuple[Cause, ...] = (
    "restart", "gpu", "host_stopped", "host_memory", "storage", "host_cpu", "steal", "rank_slow",
)  # fmt: skip


def findings_of_savings(report: Report) -> Iterator[Finding]:
    """One sentence, where streams that had waited ran again on another rail."""
    rode = [
        one for one in report.moves.incidents
        if one.waited_ns is not None and set(one.reasons) & set(_NOTHING_PASSES)
    ]  # fmt: skip
    if not rode:
        return
    bad = coverage.union(
        Span(one.begin_ns, max(one.begin_ns, one.end_ns or report.whole.end_ns)) for one in rode
    )
    bad_ns = sum(span.length_ns for span in bad)
    # Each incident's wait is within its own span; of several at once the longest counts.
    waited_ns = min(bad_ns, sum(one.waited_ns or 0 for one in rode))
    saved_ns = (bad_ns - waited_ns) * len(report.nodes)
    nodes = tuple(sorted({name for one in rode for name in one.nodes}))
    text = (
        f"Link failover saved up to {amount(saved_ns)}: rails without carrier, or silent, were "
        f"left for {format_duration(bad_ns / 1e9)}, and what had used them waited "
        f"{format_duration(waited_ns / 1e9)} in all"
    )
    if report.accounts is not None and report.accounts.signal != "none":
        network, others = (
            amount(_lost_ns(report.accounts, causes)) for causes in (_NETWORK, _NO_RAIL_HELPS)
        )
        text += (
            f". The network cost {network} all the same; {others} were lost to hosts, ranks, GPUs "
            "and files, where no other rail helps"
        )
    yield Finding("info", "saved", nodes, None, bad[0].begin_ns, bad[-1].end_ns, f"{text}.")


def _lost_ns(accounts: Accounts, causes: tuple[Cause, ...]) -> int:
    return sum(one.loss_ns for one in accounts.verdicts if one.cause in causes)
