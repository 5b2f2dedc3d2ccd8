"""What a table, a column and an attribute are, and the columns that many tables share.

A table's rows are packed little-endian structures; a column's ``code`` is a :mod:`struct`
format character (or ``"<n>s"`` for NUL-padded UTF-8), from which the numpy dtype follows.
Counters are the kernel's own, since boot; consumers take differences. A value that could not be
read is the type's largest value for unsigned integers (``NOT_MEASURED``), never zero.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

MONO = "CLOCK_MONOTONIC"
REAL = "CLOCK_REALTIME"
NOT_MEASURED = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFF_FFFF, "Q": 0xFFFF_FFFF_FFFF_FFFF}


@dataclass(frozen=True)
class Column:
    """One column: ``unit`` SI or "B", "1" for counts and enumerations; ``clock`` for times."""

    name: str
    code: str
    unit: str
    doc: str
    clock: str = ""
    values: type[IntEnum] | None = None


@dataclass(frozen=True)
class Table:
    """One table of a node: ``number`` is its id in the journal and never reused."""

    name: str
    number: int
    doc: str
    columns: tuple[Column, ...]
    packer: struct.Struct = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        packer = struct.Struct("<" + "".join(column.code for column in self.columns))
        object.__setattr__(self, "packer", packer)


def time_column(doc: str) -> Column:
    return Column("time_mono_ns", "q", "ns", doc, MONO)


RAIL_INDEX = Column("rail", "B", "1", "Index of the rail in the node's `rails` attribute, from 0.")


@dataclass(frozen=True)
class Attribute:
    """One named value of a job or a node; in a journal's header all are text."""

    name: str
    kind: Literal["text", "int", "float"]
    unit: str
    doc: str
    clock: str = ""
    required: bool = False
