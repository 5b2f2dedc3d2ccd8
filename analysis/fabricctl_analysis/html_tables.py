"""The tables of the HTML report."""

from collections.abc import Iterator, Sequence
from html import escape

from fabricctl.units import format_duration
from fabricctl_analysis import phrases, render_moves
from fabricctl_analysis.choose import most_telling, most_telling_nodes
from fabricctl_analysis.model import NodeSummary, RailSummary, Report, Unmeasured
from fabricctl_analysis.names import folded
from fabricctl_analysis.when import When

MAX_ROWS = 200


def tables(report: Report, when: When) -> Iterator[str]:
    """Rails, nodes, what was not measured, notes."""
    yield "<h2>Rails</h2>"
    rails = most_telling(report.rails, MAX_ROWS)
    if len(rails) < len(report.rails):
        yield of_many(len(rails), len(report.rails), "rails")
    head: tuple[str, ...]
    head = ("rail", "interface", "received", "sent", "peak received", "peak sent", "down",
            "times", "carrier changes", "errors", "drops")  # fmt: skip
    yield from table(head, [_rail_cells(rail) for rail in rails])
    if report.moves.incidents:
        yield "<h2>Moved between rails</h2>"
        rows = [render_moves.cells(one, when) for one in report.moves.incidents[:MAX_ROWS]]
        yield from table(render_moves.HEAD, rows, text=render_moves.TEXT_COLUMNS)
        yield from _more(len(report.moves.incidents))
    yield "<h2>Nodes</h2>"
    nodes = most_telling_nodes(report.nodes, MAX_ROWS)
    if len(nodes) < len(report.nodes):
        yield of_many(len(nodes), len(report.nodes), "nodes")
    head = ("node", "measured", "agent lives", "CPU", "CPU peak", "cores", "memory peak", "of",
            "job CPU", "job memory peak", "processes", "stalled most by")  # fmt: skip
    yield from table(head, [_node_cells(node, report) for node in nodes])
    yield "<h2>Not measured</h2>"
    if report.unmeasured:
        rows = [_unmeasured_cells(one, when) for one in report.unmeasured[:MAX_ROWS]]
        yield from table(("nodes", "what", "when", "why"), rows, text=(1, 2, 3))
        yield from _more(len(report.unmeasured))
    else:
        yield "<p>Every source gave every reading that it was asked for.</p>"
    if report.remarks:
        yield "<h2>Notes of the nodes</h2>"
        notes = [
            (when.clock(note.at_ns), note.node, note.severity, note.source, note.text)
            for note in report.remarks[:MAX_ROWS]
        ]
        yield from table(("at", "node", "weight", "from", "note"), notes, text=(1, 2, 3, 4))
        yield from _more(len(report.remarks))


def _rail_cells(rail: RailSummary) -> tuple[str, ...]:
    changes = rail.link.changes
    return (
        f"{rail.node} r{rail.index}",
        rail.interface,
        phrases.volume(rail.counters["rx_bytes"]),
        phrases.volume(rail.counters["tx_bytes"]),
        phrases.rate(rail.peaks["rx"]),
        phrases.rate(rail.peaks["tx"]),
        phrases.down(rail),
        str(len(rail.link.downs)) if rail.link.measured else phrases.UNKNOWN,
        phrases.UNKNOWN if changes is None else str(changes),
        phrases.both(rail, "errors"),
        phrases.both(rail, "dropped"),
    )


def _node_cells(node: NodeSummary, report: Report) -> tuple[str, ...]:
    whole = report.whole.length_ns
    share = min(1.0, node.measured_ns / whole) if whole else 0.0
    return (
        node.name,
        phrases.percent(share) if node.measured else phrases.UNKNOWN,
        str(node.agent_lives) if node.agent_lives else phrases.UNKNOWN,
        phrases.cpu_share(node, "cpu_mean"),
        phrases.cpu_share(node, "cpu_max"),
        phrases.cell(node, "cores"),
        phrases.cell(node, "memory_max"),
        phrases.cell(node, "memory_total"),
        phrases.cell(node, "job_cpu"),
        phrases.cell(node, "job_memory_max"),
        phrases.cell(node, "job_processes_max"),
        phrases.stalled(node),
    )


def _more(count: int) -> Iterator[str]:
    if count > MAX_ROWS:
        yield f'<p class="soft small">and {count - MAX_ROWS} more: see --json</p>'


def _unmeasured_cells(one: Unmeasured, when: When) -> tuple[str, ...]:
    times = "whole job"
    if one.span is not None:
        length = format_duration(one.span.length_ns / 1e9)
        times = f"{length}, {when.clock(one.span.begin_ns)} to {when.clock(one.span.end_ns)}"
    return folded(one.nodes), one.what, times, one.why


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()
) -> Iterator[str]:
    """Rows of cells; the columns ``text`` are not numbers."""
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(
        f"<th{' class=text' if nth in text else ''}>{escape(word)}</th>"
        for nth, word in enumerate(head)
    )
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(_cell(cell, nth in text) for nth, cell in enumerate(row)) + "</tr>"
    yield "</tbody></table></div>"


def _cell(cell: str, text: bool) -> str:
    if cell == phrases.UNKNOWN:
        return '<td class="unknown">not measured</td>'
    return f"<td{' class=text' if text else ''}>{escape(cell)}</td>"


def of_many(shown: int, count: int, what: str) -> str:
    """That only some are shown, and which."""
    words = f"The {shown} of {count} {what} that tell most: not measured, down, erring, busy."
    return f'<p class="soft small">{escape(words)}</p>'
