"""The report as one screen of a terminal, the most important thing first."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fabricctl.units import format_rate
from fabricctl_analysis import clock_words, phrases, render_moves, spark, verdicts
from fabricctl_analysis.choose import most_telling, most_telling_nodes
from fabricctl_analysis.model import Finding, NodeSummary, RailSummary, Report
from fabricctl_analysis.repeated import first, readable
from fabricctl_analysis.when import When

WIDTH = 80
MAX_FINDINGS = 10
MAX_ROWS = 16  # a table of at most so many rows is shown whole
FEW_ROWS = 8  # of a longer one: the whole stays on one screen of 50 lines
MAX_UNMEASURED = 8
MAX_VERDICTS = 6
SHORTEST_NAME = 8
SPARK = (7, 20)  # fewest and most characters

_COLOURS = {"error": "31;1", "warning": "33", "head": "1"}
_MARKS = {"error": "!!", "warning": " !", "info": "  "}


@dataclass(frozen=True)
class Screen:
    """What the terminal can show."""

    colour: bool = False
    unicode: bool = False

    def paint(self, text: str, role: str) -> str:
        """``text`` in the colour of its role, if there are colours."""
        if not self.colour or role not in _COLOURS:
            return text
        return f"\x1b[{_COLOURS[role]}m{text}\x1b[0m"


def render_text(
    report: Report, found: Sequence[Finding], when: When, screen: Screen | None = None
) -> str:
    """The screen, in lines of at most 80 columns."""
    screen = screen or Screen()
    lines = [
        *_head(report, when, screen),
        *_findings(report, readable(found, when), screen),
        *_accounts(report, when, screen),
        *_rails(report, screen),
        *_moves(report, when, screen),
        *_nodes(report, screen),
        *_unmeasured(report, when, screen),
        "",
        *(line for words in clock_words.sentences(report, when) for line in _wrap(words)),
        *_wrap(phrases.clock(report)),
        *(_wrap(cost) if (cost := phrases.overhead(report)) else ()),
    ]
    text = "\n".join(lines) + "\n"
    return text if screen.unicode else text.encode("ascii", "replace").decode()


def _wrap(text: str, indent: str = "") -> list[str]:
    """Lines of the screen's width; a word longer than that is cut, so that nothing sticks out."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _head(report: Report, when: When, screen: Screen) -> Iterator[str]:
    yield from (screen.paint(line, "head") for line in _wrap(phrases.who(report), "  "))
    yield from _wrap(f"{phrases.span(report, when)}, {phrases.took(report)}", "  ")
    if report.steps:
        yield from _wrap(phrases.steps(report, when), "  ")
    yield from _wrap(phrases.protection(report), "  ")
    yield ""


def _findings(report: Report, found: Sequence[Finding], screen: Screen) -> Iterator[str]:
    for one in first(found, MAX_FINDINGS):
        for line in _wrap(f"{_MARKS[one.severity]} {one.text}", "   "):
            yield screen.paint(line, one.severity)
    if len(found) > MAX_FINDINGS:
        yield f"   and {len(found) - MAX_FINDINGS} more: --json lists all"
    if not found:
        yield from _wrap(phrases.nothing(report))


def _accounts(report: Report, when: When, screen: Screen) -> Iterator[str]:
    accounts = report.accounts
    if accounts is None or accounts.signal == "none":
        return
    rows = []
    for line in verdicts.lines(accounts)[:MAX_ROWS]:
        one = line.verdict
        at = "" if one is None else f"{when.clock(one.begin_ns, 0)} +{one.length_s:.0f} s"
        sure = "" if one is None or one.certainty == "none" else one.certainty
        rows.append((line.what, verdicts.amount(line.amount_ns),
                     verdicts.share(line.amount_ns, accounts), at, sure))  # fmt: skip
    whole = verdicts.amount(accounts.elapsed_ns)
    yield ""
    head, *fitting = _named([("WHERE THE TIME WENT", whole, "100.0 %", "", ""), *rows], WIDTH)
    yield from _table(head, fitting, "lrrll", screen)
    for one in [one for one in accounts.verdicts if one.cause != "start_end"][:MAX_VERDICTS]:
        yield from _wrap(f" - {verdicts.sentence(one, when, accounts)}", "   ")
    for one in accounts.harmless[:MAX_VERDICTS]:
        yield from _wrap(f" - {verdicts.quiet_sentence(one, when)}", "   ")
    yield from _wrap(verdicts.basis(accounts))
    told = verdicts.advice(report)
    if told:
        yield ""
        yield screen.paint("ADVICE", "head")
        for words in told[:MAX_VERDICTS]:
            yield from _wrap(f" - {words}.", "   ")


def _rails(report: Report, screen: Screen) -> Iterator[str]:
    rails = most_telling(report.rails, _limit(report.rails))
    if not rails:
        return
    head: tuple[str, ...] = ("RAIL", "received", "sent", "peak rx", "down", "errors", "drops")
    head, *cells = _named([head, *(_rail_cells(rail) for rail in rails)], WIDTH - 2 - SPARK[0])
    bins = min(WIDTH - _width([head, *cells]) - 2, SPARK[1])
    traffic = [spark.traffic(rail, report.whole, bins) for rail in rails]
    known = [float(np.nanmax(values)) for values in traffic if not np.isnan(values).all()]
    highest = max(known, default=0.0)
    blocks = spark.BLOCKS if screen.unicode else spark.ASCII
    rows = [
        (*row, spark.sparkline(values, highest, rail, report.whole, blocks))
        for row, values, rail in zip(cells, traffic, rails, strict=True)
    ]
    yield ""
    yield from _table((*head, "traffic"), rows, "l" + "r" * (len(head) - 1) + "l", screen)
    yield from _wrap(_legend(rows, highest, blocks))
    if len(rails) < len(report.rails):
        yield f"The {len(rails)} most telling of {len(report.rails)} rails; --json has all."


def _rail_name(rail: RailSummary) -> str:
    """``r0 ib0``; an interface that is called like the rail is not told twice."""
    name = f"r{rail.index}"
    return name if rail.interface == name else f"{name} {rail.interface}"


def _limit(rows: Sequence[object]) -> int:
    return MAX_ROWS if len(rows) <= MAX_ROWS else FEW_ROWS


def _rail_cells(rail: RailSummary) -> tuple[str, ...]:
    return (
        f"{rail.node} {_rail_name(rail)}",
        phrases.volume(rail.counters["rx_bytes"]),
        phrases.volume(rail.counters["tx_bytes"]),
        phrases.rate(rail.peaks["rx"]),
        phrases.down(rail),
        phrases.both(rail, "errors"),
        phrases.both(rail, "dropped"),
    )


def _legend(rows: Sequence[tuple[str, ...]], highest: float, blocks: str) -> str:
    """What the marks mean that are there."""
    lines = "".join(row[-1] for row in rows)
    cells = [cell for row in rows for cell in row[1:-1]]
    parts = [f"traffic, both ways: {blocks[-1]} is {format_rate(highest)}"]
    if spark.DOWN in lines:
        parts.append("x down")
    if "?" in lines or phrases.UNKNOWN in cells:
        parts.append("? not measured")
    if any(cell.startswith(">") for cell in cells):
        parts.append("> at least")
    if any(cell.endswith("+") or cell == phrases.UNSEEN for cell in cells):
        parts.append("+, unseen: down for a time that nobody saw")
    return "; ".join(parts)


def _moves(report: Report, when: When, screen: Screen) -> Iterator[str]:
    shown = report.moves.incidents[:FEW_ROWS]
    if not shown:
        return
    head, *rows = _named(
        [render_moves.SHORT_HEAD, *(render_moves.short_cells(one, when) for one in shown)], WIDTH
    )
    yield ""
    yield from _table(head, rows, "ll" + "r" * len(head), screen)
    if len(shown) < len(report.moves.incidents):
        yield f"The first {len(shown)} of {len(report.moves.incidents)}; --json has all."


def _nodes(report: Report, screen: Screen) -> Iterator[str]:
    nodes = most_telling_nodes(report.nodes, _limit(report.nodes))
    if not nodes:
        return
    head = ("NODE", "measured", "CPU", "peak", "cores", "mem peak/all", "job CPU", "job mem",
            "stalled")  # fmt: skip
    yield ""
    rows = _named([head, *(_node_cells(node, report) for node in nodes)], WIDTH)
    yield from _table(rows[0], rows[1:], "l" + "r" * len(rows[0]), screen)
    if len(nodes) < len(report.nodes):
        yield f"The {len(nodes)} most telling of {len(report.nodes)} nodes; --json has all."


def _node_cells(node: NodeSummary, report: Report) -> tuple[str, ...]:
    whole = report.whole.length_ns
    share = min(1.0, node.measured_ns / whole) if whole else 0.0
    return (
        node.name,
        phrases.percent(share) if node.measured else "no",
        phrases.cpu_share(node, "cpu_mean"),
        phrases.cpu_share(node, "cpu_max"),
        phrases.cell(node, "cores"),
        phrases.memory(node),
        phrases.cell(node, "job_cpu"),
        phrases.cell(node, "job_memory_max"),
        phrases.stalled(node),
    )


def _unmeasured(report: Report, when: When, screen: Screen) -> Iterator[str]:
    """Missing nodes and gaps stand among the findings already."""
    rest = [one for one in report.unmeasured if one.span is None and one.what != "everything"]
    if not rest:
        return
    yield ""
    yield screen.paint("NOT MEASURED", "head")
    for one in rest[:MAX_UNMEASURED]:
        yield from _wrap(phrases.unmeasured(one, when), "  ")
    if len(rest) > MAX_UNMEASURED:
        yield f"and {len(rest) - MAX_UNMEASURED} more: --json lists all"


def _table(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], align: str, screen: Screen
) -> Iterator[str]:
    widths = _widths([head, *rows])
    for nth, row in enumerate([head, *rows]):
        cells = [
            cell.ljust(width) if how == "l" else cell.rjust(width)
            for cell, width, how in zip(row, widths, align, strict=False)
        ]
        line = "  ".join(cells).rstrip()
        yield screen.paint(line, "head") if nth == 0 else line


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]


def _width(rows: Sequence[tuple[str, ...]]) -> int:
    """Of the whole table, with two blanks between columns."""
    widths = _widths(rows)
    return sum(widths) + 2 * (len(widths) - 1)


def _named(rows: Sequence[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Rows made to fit: long names lose their begins, which tell less than their ends, and if
    that is not enough the last columns go."""
    while _width(rows) - _widths(rows)[0] + SHORTEST_NAME > width:
        rows = [row[:-1] for row in rows]
    room = width - (_width(rows) - _widths(rows)[0])
    return [(_cut(row[0], room), *row[1:]) for row in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "~" + text[len(text) - width + 1 :]
