"""The report as Markdown: for an issue, a chat or a lab book."""

from collections.abc import Iterator, Sequence

from fabricctl_analysis import phrases, verdicts
from fabricctl_analysis.choose import most_telling, most_telling_nodes
from fabricctl_analysis.model import Finding, Report
from fabricctl_analysis.repeated import first, readable
from fabricctl_analysis.when import When

MAX_ROWS = 32
MAX_FINDINGS = 20
_SPECIAL = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]<>|#"})


def render_markdown(report: Report, found: Sequence[Finding], when: When) -> str:
    """CommonMark with tables as GitHub and GitLab have them."""
    lines = [
        f"# {_safe(phrases.who(report))}",
        "",
        f"{_safe(phrases.span(report, when))}, {phrases.took(report)}. "
        f"{_safe(phrases.protection(report))}",
        "",
        *(
            f"- **{one.severity}** {_safe(one.text)}"
            for one in first(readable(found, when), MAX_FINDINGS)
        ),
        *([] if found else [_safe(phrases.nothing(report))]),
        *_accounts(report, when),
        *_tables(report),
        "",
        _safe(phrases.clock(report)),
    ]
    return "\n".join(lines) + "\n"


def _safe(text: str) -> str:
    return text.translate(_SPECIAL)


def _accounts(report: Report, when: When) -> Iterator[str]:
    accounts = report.accounts
    if accounts is None or accounts.signal == "none":
        return
    yield from ("", "## Where the time went", "")
    yield from _table(
        ("what", "amount", "share"),
        [
            (line.what, verdicts.amount(line.amount_ns), verdicts.share(line.amount_ns, accounts))
            for line in verdicts.lines(accounts)
        ],
    )
    yield ""
    for one in accounts.verdicts[:MAX_FINDINGS]:
        yield f"- {_safe(verdicts.sentence(one, when, accounts))}"
    for one in accounts.harmless[:MAX_FINDINGS]:
        yield f"- {_safe(verdicts.quiet_sentence(one, when))}"
    yield from ("", _safe(verdicts.basis(accounts)))
    told = verdicts.advice(report)
    if told:
        yield from ("", "## Advice", "")
        yield from (f"- {_safe(words)}." for words in told)


def _tables(report: Report) -> Iterator[str]:
    yield from ("", "## Rails", "")
    yield from _table(
        ("rail", "received", "sent", "peak received", "down", "errors", "drops"),
        [
            (
                f"{rail.node} r{rail.index}",
                phrases.volume(rail.counters["rx_bytes"]),
                phrases.volume(rail.counters["tx_bytes"]),
                phrases.rate(rail.peaks["rx"]),
                phrases.down(rail),
                phrases.both(rail, "errors"),
                phrases.both(rail, "dropped"),
            )
            for rail in most_telling(report.rails, MAX_ROWS)
        ],
    )
    yield from ("", "## Nodes", "")
    yield from _table(
        ("node", "CPU", "CPU peak", "cores", "memory peak", "job CPU"),
        [
            (
                node.name,
                phrases.cpu_share(node, "cpu_mean"),
                phrases.cpu_share(node, "cpu_max"),
                phrases.cell(node, "cores"),
                phrases.memory(node),
                phrases.cell(node, "job_cpu"),
            )
            for node in most_telling_nodes(report.nodes, MAX_ROWS)
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(_safe(cell) for cell in row) + " |"
