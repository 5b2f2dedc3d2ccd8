"""The report of an audit: JSON with its own hash, and a page. Pure."""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.fleet.audit.model import STATUSES, Check, worst
from fabricctl.fleet.audit.pairwise import Link

VERSION = 1
DRIFT = 0.3  # of a value: what links of one kind differ by on machines that do other work
_COLOURS = {"ok": "#2e7d32", "warn": "#b26a00", "fail": "#c62828", "not measured": "#666"}


def document(
    checks: Sequence[Check],
    nodes: Sequence[str],
    cluster: str,
    begin_s: int,
    end_s: int,
    *,
    signed: Mapping[str, str] | None = None,
    links: Sequence[Link] = (),
) -> dict[str, Any]:
    """What is written as JSON. ``sha256`` is over everything else, ``verdict_sha256`` over who
    passed what, so that two audits with the same verdicts can be told at a glance."""
    by_node = {
        node: worst([check for check in checks if check.node == node]) for node in sorted(nodes)
    }
    verdicts = sorted((c.node, c.area, c.name, c.rail, c.status) for c in checks)
    body: dict[str, Any] = {
        "version": VERSION,
        "cluster": cluster,
        "begin_real_s": begin_s,
        "end_real_s": end_s,
        "nodes": by_node,
        "checks": [asdict(check) for check in checks],
        "signed_off": dict(signed) if signed else None,
        # node, peer, rail, median round trip in ns
        "pairs": [[x.node, x.peer, x.rail, x.rtt_ns] for x in links if x.rtt_ns is not None],
        "verdict_sha256": hashlib.sha256(json.dumps(verdicts).encode()).hexdigest(),
    }
    return {**body, "sha256": digest(body)}


def digest(body: Mapping[str, Any]) -> str:
    """Of the document without its ``sha256``, keys sorted, without blanks."""
    rest = {key: value for key, value in body.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(text: str) -> dict[str, Any]:
    """A report that was written before, unchanged; raises :class:`DataError`."""
    try:
        given = json.loads(text)
        checks = [Check(**check) for check in given["checks"]]
        said = given["sha256"]
    except (ValueError, KeyError, TypeError):
        raise DataError("audit: this is not a report of an audit") from None
    if digest(given) != said:
        raise DataError("audit: the report was changed: its sha256 is another")
    return {**given, "checks": checks}


def changes(before: Sequence[Check], after: Sequence[Check]) -> list[tuple[Check | None, Check]]:
    """Checks whose verdict is another than in an earlier report."""
    old = {(c.node, c.area, c.name, c.rail): c for c in before}
    found = []
    for check in after:
        was = old.get((check.node, check.area, check.name, check.rail))
        if (was.status if was else None) != check.status:
            found.append((was, check))
    return found


def drifts(
    before: Sequence[Check], after: Sequence[Check], share: float = DRIFT
) -> list[tuple[Check, Check]]:
    """Measured values that are far from those of an earlier report, both of the same unit."""
    old = {(c.node, c.area, c.name, c.rail): c for c in before}
    found = []
    for now in after:
        was = old.get((now.node, now.area, now.name, now.rail))
        if was is None or was.number is None or now.number is None or was.unit != now.unit:
            continue
        if now.area != "clock" and abs(now.number - was.number) > share * abs(was.number):
            found.append((was, now))
    return found


def page(given: Mapping[str, Any], when: str) -> str:
    """One HTML file."""
    rows = []
    order = sorted(given["checks"], key=lambda c: (STATUSES.index(c["status"]), c["node"]))
    for check in order:
        cells = (check["node"], check["area"], check["name"], check["rail"], check["value"],
                 check["limit"])  # fmt: skip
        words = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        status = check["status"]
        rows.append(f'<tr>{words}<td style="color:{_COLOURS[status]}">{status}</td></tr>')
    counts = []
    for status in STATUSES:
        names = [node for node, worst_of in given["nodes"].items() if worst_of == status]
        if names:
            counts.append(f'<b style="color:{_COLOURS[status]}">{status}</b>: '
                          f"{html.escape(hostlist.fold(names))}")  # fmt: skip
    body = "\n".join(rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Audit of {html.escape(given["cluster"])}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #8884; }}
code {{ font-size: .8rem; overflow-wrap: anywhere; }}
</style></head><body>
<h1>Audit of {html.escape(given["cluster"])}</h1>
<p>{html.escape(when)}. {len(given["nodes"])} nodes, {len(given["checks"])} checks.
{"; ".join(counts)}.</p>
{_signed(given.get("signed_off"))}
<table><thead><tr><th>node</th><th>area</th><th>check</th><th>rail</th><th>found</th><th>limit</th>
<th>verdict</th></tr></thead><tbody>
{body}
</tbody></table>
<p><code>sha256 {given["sha256"]}<br>verdicts {given["verdict_sha256"]}</code></p>
</body></html>
"""


def _signed(given: Mapping[str, str] | None) -> str:
    if not given:
        return "<p>Not signed off.</p>"
    words = f"Signed off by {given['by']}, {given['at']}"
    return f"<p>{html.escape(words + (': ' + given['text'] if given['text'] else ''))}</p>"
