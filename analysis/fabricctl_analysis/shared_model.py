"""What is said of rails that a job shared with others (shared_rails.py finds it)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What one node gave the job of its rails, or why it did not, in fabric-pathd's words."""

    node: str
    text: str


@dataclass(frozen=True)
class Paced:
    """A node slowed down on a rail. It tells so at most once in 10 s: ``times`` is at least."""

    node: str
    rail: int
    times: int
    first_ns: int
    last_ns: int
    worst_ns: int  # what packets waited in the network, when it was told


@dataclass(frozen=True)
class Rerouted:
    """Streams to one peer went round a queue; ``end_ns`` None: not back before the job ended."""

    node: str
    peer: str
    rail: int
    begin_ns: int
    end_ns: int | None
    waited_ns: int  # in the queue, when they left


@dataclass(frozen=True)
class SharedRails:
    """All of one job."""

    shares: tuple[Share, ...] = ()
    refused: tuple[Share, ...] = ()
    paced: tuple[Paced, ...] = ()
    rerouted: tuple[Rerouted, ...] = ()
