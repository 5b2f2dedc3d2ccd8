"""Restoring on another number of ranks than saved, where programs say how their data divide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabricctl.errors import DataError
from fabricctl.state.ckpt.items import Fill, Item


@dataclass(frozen=True)
class Piece:
    """Rows of a whole that one old rank saved: where its bytes are."""

    rank: int
    first: int
    count: int
    begin: int
    size: int


Head = Sequence[Sequence[Any]]  # one old rank's manifest


def pieces(heads: Mapping[int, Head], name: str) -> list[Piece]:
    """An item's pieces in the order of the whole; raises :class:`DataError` when they are none."""
    found = []
    total = None
    for rank, head in heads.items():
        for called, _, begin, size, _, whole, *_ in head:
            if called != name:
                continue
            if not whole or whole[0] != "share" or (total is not None and whole[3] != total):
                raise DataError(f"restore {name!r}: rank {rank} did not save it as a Share")
            total = whole[3]
            found.append(Piece(rank, int(whole[1]), int(whole[2]), int(begin), int(size)))
    found.sort(key=lambda piece: (piece.first, piece.count))
    at = 0
    for piece in found:
        if piece.first != at:
            raise DataError(
                f"restore {name!r}: rows {at} to {piece.first} were saved by no rank, or twice"
            )
        at += piece.count
    if total is None or at != total:
        raise DataError(f"restore {name!r}: {at} of {total} rows were saved")
    return found


def refill(
    items: Mapping[str, Item],
    heads: Mapping[int, Head],
    here: int,
    part: Callable[[int], memoryview],
) -> Fill:
    """What fills a rank's items from parts of another number of ranks; ``part(old rank)`` gives one
    whose checksums are good; ``here``: whose part is at hand. Raises :class:`DataError`."""
    names = sorted(str(entry[0]) for entry in heads[here])
    if names != sorted(items):
        raise DataError(
            f"restore: {', '.join(names)} were saved, {', '.join(sorted(items))} are protected"
        )
    ready: list[tuple[Item, memoryview]] = []
    for name, item in items.items():
        if item.of_whole is None:
            raise DataError(
                f"restore {name!r}: {len(heads)} ranks saved it, and it is neither Share nor Same"
            )
        if item.of_whole[0] == "same":
            entry = next(entry for entry in heads[here] if entry[0] == name)
            view = part(here)[entry[2] : entry[2] + entry[3]]
        else:
            view = _rows(name, item, heads, part)
        ready.append((item, view))
    for item, view in ready:
        item.check(view)

    def fill() -> None:
        for item, view in ready:
            item.load(view)

    return fill


def _rows(
    name: str, item: Item, heads: Mapping[int, Head], part: Callable[[int], memoryview]
) -> memoryview:
    """The rows that are this rank's now."""
    _, first, count, total = item.of_whole or ("", 0, 0, 0)
    found = pieces(heads, name)
    size = sum(piece.size for piece in found)
    whole = found[-1].first + found[-1].count
    if whole != total or size % max(total, 1):
        raise DataError(f"restore {name!r}: {whole} rows were saved, {total} are expected")
    row = size // max(total, 1)
    out = bytearray()
    for piece in found:
        begin, end = max(piece.first, first), min(piece.first + piece.count, first + count)
        if begin < end:
            at = piece.begin + (begin - piece.first) * row
            out += part(piece.rank)[at : at + (end - begin) * row]
    return memoryview(out)
