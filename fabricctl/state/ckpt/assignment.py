"""What a keeper is given by the node service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Assignment:
    """What a keeper is to know."""

    job: int
    uid: int
    key: bytes
    node: str
    nodes: tuple[str, ...]
    socket: Path
    quota_bytes: int
    port_first: int
    port_count: int
    resolve: Callable[[str], Sequence[str]]
    disk: Path | None = None
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # node -> level -> group
    # A requeue may change them. May raise FabricError.
    nodes_now: Callable[[], Sequence[str]] | None = None
    groups_of: Callable[[Sequence[str]], Mapping[str, Mapping[str, str]]] = lambda _: {}
