"""``python -m fabricctl.store.document [--check] [FILE]``: the generated parts of data-format.md.

What lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is written from the code that
writes the files; ``--check`` only says (status 1) whether it is up to date.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fabricctl.errors import UsageError
from fabricctl.store import dtypes, journal, rollups, schema

_DOCUMENT = Path("docs/data-format.md")


def rendered(document: str) -> str:
    """The document with its generated parts made anew; raises :class:`UsageError`."""
    for name, make in PARTS.items():
        pieces = re.split(rf"(<!-- begin {name} -->\n|<!-- end {name} -->)", document)
        if len(pieces) != 5:
            raise UsageError(f"document: part {name!r} must be there once, with begin and end")
        pieces[2] = make()
        document = "".join(pieces)
    return document


def _tables() -> str:
    return "\n".join(_table(table) for table in schema.TABLES)


def _rollups() -> str:
    """What each rollup has beside the columns of its table."""
    first = next(iter(rollups.WIDTHS_S))
    known = [
        (rollup, column)
        for rollup in rollups.ROLLUPS
        for column in rollup.tables[first].columns[len(rollup.table.columns) :]
    ]
    return _grid(
        ("table", "column", "dtype", "unit", "meaning"),
        ((f"`{r.table.name}_*`", f"`{c.name}`", f"`{_dtype(c)}`", c.unit, c.doc) for r, c in known),
    )


def _dtype(column: schema.Column) -> str:
    return dtypes.dtype(schema.Table("", 0, "", (column,)))[0].str.lstrip("|")


def _table(table: schema.Table) -> str:
    kinds = dtypes.dtype(table)
    where = f"Number {table.number} in journals" if table is not schema.LIFE else "Not in journals"
    head = f"### `{table.name}`\n{table.doc}\n\n{where}; {table.packer.size} bytes a row.\n\n"
    return head + _grid(
        ("column", "dtype", "unit", "clock", "meaning"),
        (
            (f"`{c.name}`", f"`{kinds[c.name].str.lstrip('|')}`", _unit(c), c.clock, _meaning(c))
            for c in table.columns
        ),
    )


def _unit(column: schema.Column) -> str:
    return "" if column.code.endswith("s") else column.unit


def _meaning(column: schema.Column) -> str:
    values = ", ".join(f"{value.value} {value.name}" for value in column.values or ())
    return f"{column.doc} `{values}`" if values else column.doc


def _attributes(known: Iterable[schema.Attribute]) -> str:
    return _grid(
        ("attribute", "type", "unit", "clock", "meaning"),
        (
            (
                f"`{a.name}`",
                _KINDS[a.kind],
                a.unit if a.kind != "text" else "",
                a.clock,
                a.doc + (" Always there." if a.required else ""),
            )
            for a in known
        ),
    )


_KINDS = {"text": "text", "int": "`<i8`", "float": "`<f8`"}


def _frame() -> str:
    """One real frame, byte by byte."""
    row = schema.JOB.packer.pack(5_000_000_000, 1_500_000_000, 1 << 30, 4)
    data = journal.frame(schema.JOB.number, 1, row)
    pieces = (
        (4, "magic"),
        (1, "frame version"),
        (1, "table: job"),
        (2, "rows: 1"),
        (4, f"payload bytes: {len(row)}"),
        (4, "CRC-32"),
        (8, "time_mono_ns: 5 s"),
        (8, "cpu_ns: 1.5 s"),
        (8, "memory_bytes: 1 GiB"),
        (4, "processes: 4"),
    )
    lines, at = ["```"], 0
    for size, what in pieces:
        lines.append(f"{at:4d}  {data[at : at + size].hex(' '):<24} {what}")
        at += size
    assert at == len(data)
    return "\n".join([*lines, "```", ""])


def _grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PARTS: Mapping[str, Callable[[], str]] = {
    "tables": _tables,
    "rollups": _rollups,
    "job attributes": lambda: _attributes(schema.JOB_ATTRIBUTES),
    "trace attributes": lambda: _attributes(schema.TRACE_ATTRIBUTES),
    "node attributes": lambda: _attributes(schema.NODE_ATTRIBUTES),
    "frame": _frame,
}


def main() -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(prog="fabricctl.store.document", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=_DOCUMENT)
    parser.add_argument("--check", action="store_true", help="change nothing")
    given = parser.parse_args()
    old = given.file.read_text("utf-8")
    new = rendered(old)
    if old == new:
        return 0
    if given.check:
        sys.stderr.write(f"{given.file}: differs from the schema: run fabricctl.store.document\n")
        return 1
    given.file.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
