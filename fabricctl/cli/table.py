"""Tables that fit the terminal."""

import shutil
import sys
from collections.abc import Sequence

LEAST_WIDTH = 6  # of a column that is cut


def terminal_width() -> int | None:
    """Columns of the terminal; None when nobody looks: then nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: str = "",
    width: int | None = None,
) -> str:
    """Lines with columns two blanks apart; ``right``: names of columns that are set flush right.

    With ``width`` the widest columns are cut, marked by ``~``, until a line fits. None is ``-``.
    """
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    wide = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    if width is not None:
        while sum(wide) + 2 * (len(wide) - 1) > width and max(wide) > LEAST_WIDTH:
            wide[wide.index(max(wide))] -= 1
    flush = {head.index(name) for name in right.split()}
    lines = []
    for row in [list(head), *texts]:
        cells = [
            f"{_cut(cell, size):>{size}}" if at in flush else f"{_cut(cell, size):{size}}"
            for at, (cell, size) in enumerate(zip(row, wide, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "~"
