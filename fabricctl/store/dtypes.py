"""The schema's tables as numpy dtypes, and arrays of other versions made to fit them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fabricctl.store.schema import NOT_MEASURED, Column, Table

Rows = NDArray[np.void]  # a structured array, one field a column

_CODES = {"B": "u1", "H": "<u2", "I": "<u4", "Q": "<u8", "q": "<i8"}


def dtype(table: Table) -> np.dtype[np.void]:
    """Packed little-endian fields, as the journal's rows are."""
    return np.dtype([(column.name, _field(column)) for column in table.columns])


def empty(table: Table, rows: int = 0) -> Rows:
    """Rows in which nothing was measured."""
    array = np.zeros(rows, dtype(table))
    for column in table.columns:
        if column.code in NOT_MEASURED:
            array[column.name] = NOT_MEASURED[column.code]
    return array


def conform(array: Rows, table: Table) -> Rows:
    """``array`` with the columns of this version's schema: what it lacks was not measured, what
    this version does not know is left out."""
    if array.dtype == dtype(table):
        return array
    result = empty(table, len(array))
    for name in array.dtype.names or ():
        if name in (result.dtype.names or ()):
            result[name] = array[name]
    return result


def summed(counters: Sequence[NDArray[np.unsignedinteger]]) -> NDArray[np.uint64]:
    """Counters added up; not measured where any of them was not."""
    total: NDArray[np.uint64] = np.sum(counters, axis=0, dtype=np.uint64)
    for counter in counters:
        total[counter == np.iinfo(counter.dtype).max] = np.iinfo(np.uint64).max
    return total


def prefix(table: Table, row_bytes: int) -> np.dtype[np.void] | None:
    """The dtype of rows that hold only the table's first columns (an older version's), or all of
    them and more (a newer one's); None when ``row_bytes`` ends inside a column."""
    whole = dtype(table)
    if row_bytes >= whole.itemsize:
        names = list(whole.names or ())
    else:
        names = [c.name for c in table.columns if _end(whole, c.name) <= row_bytes]
        if not names or _end(whole, names[-1]) != row_bytes:
            return None
    spec = {
        "names": names,
        "formats": [whole[name] for name in names],
        "offsets": [_end(whole, name) - whole[name].itemsize for name in names],
        "itemsize": row_bytes,
    }
    return np.dtype(spec)  # type: ignore[call-overload, no-any-return]


def _end(whole: np.dtype[np.void], name: str) -> int:
    assert whole.fields is not None
    kind, offset = whole.fields[name][:2]
    return int(offset) + kind.itemsize


def _field(column: Column) -> str:
    return f"S{column.code[:-1]}" if column.code.endswith("s") else _CODES[column.code]
