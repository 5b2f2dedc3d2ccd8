"""Names of nodes for people."""

from collections.abc import Sequence

from fabricctl import hostlist
from fabricctl.errors import DataError


def folded(nodes: Sequence[str]) -> str:
    """``n[1-3]``; names that are none (a forged trace) stay as they are."""
    try:
        return hostlist.fold(nodes)
    except DataError:
        return ",".join(nodes)
