"""The page of ``fabricctl usage --html``: one file, nothing from the network."""

import datetime
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabricctl.config import Config
    from fabricctl.fleet.usage import Sum

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } p { margin: .3rem 0 1.2rem; opacity: .8; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th { font-weight: 600; } th.t, td.t { text-align: left; } tr.sum td { font-weight: 600; }
.bar { display: inline-block; height: .7em; background: #4a7ebb; }
.bar.lost { background: #c0504d; }
td.b { width: 22%; text-align: left; white-space: nowrap; }
"""


def page(
    rows: Sequence["Sum"],
    whole: Sequence["Sum"],
    keys: Sequence[str],
    period: tuple[int, int],
    settings: "Config",
) -> str:
    """The whole page."""
    first, last = (
        datetime.datetime.fromtimestamp(each).astimezone().strftime("%Y-%m-%d %H:%M %Z")
        for each in period
    )
    most = max((row.node_s for row in rows), default=0.0)
    lines = [_row(row, most) for row in rows]
    if whole and keys:
        lines.append(_row(whole[0], 0.0, ("total", *[""] * (len(keys) - 1))))
    head = "".join(f'<th class="t">{html.escape(key)}</th>' for key in keys)
    names = ("jobs", "node hours", "CPU hours", "GPU hours", "lost", "credited",
             settings.usage.currency)  # fmt: skip
    head += '<th class="t">used and lost</th>' + "".join(
        f"<th>{html.escape(name)}</th>" for name in names
    )
    causes = ", ".join(settings.usage.credit) or "nothing"
    body = "\n".join(lines) or "<tr><td>no job ran in it</td></tr>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Usage {first} to {last}</title>
<style>{_STYLE}</style></head><body>
<h1>Usage of the cluster</h1>
<p>{first} to {last}. Lost and credited in node hours; credited: {html.escape(causes)}.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></body></html>
"""


def _row(row: "Sum", most: float, group: Sequence[str] = ()) -> str:
    used, lost = ((100 * part / most if most else 0.0) for part in (row.node_s, row.lost_s))
    bars = f'<span class="bar" style="width:{max(0.0, used - lost):.2f}%"></span>'
    bars += f'<span class="bar lost" style="width:{lost:.2f}%"></span>'
    cells = "".join(f'<td class="t">{html.escape(name)}</td>' for name in group or row.group)
    cells += f'<td class="b">{bars if most else ""}</td><td>{len(row.jobs)}</td>'
    hours = (row.node_s, row.cpu_s, row.gpu_s, row.lost_s, row.credited_node_s)
    cells += "".join(f"<td>{value / 3600:.2f}</td>" for value in hours)
    kind = ' class="sum"' if group else ""
    return f"<tr{kind}>{cells}<td>{row.charge:.2f}</td></tr>"
