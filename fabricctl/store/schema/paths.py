"""Tables 30 to 39: the mover of the job's TCP traffic (docs/paths.md)."""

from enum import IntEnum

from fabricctl.store.schema.base import MONO, RAIL_INDEX, REAL, Column, Table, time_column


class PathEvent(IntEnum):
    """What fabric-pathd, the mover of a job's TCP traffic, reported (docs/paths.md)."""

    PATH = 0  # a rail to a peer became good, poor or dead; traffic moved if `moved_mono_ns` > 0
    RECOVERED = 1  # the streams that a move found waiting run again
    STALLED = 2  # a peer is silent on every rail: a stalled host, no verdict on any link
    BACK = 3  # it is heard again
    CAUSE = 4  # what broke: own_port, peers_port, one_of_two_ports, switch, path
    REQUEST = 5  # an administrator moved something
    LINK = 6  # carrier of a rail changed
    BEGIN = 7
    END = 8
    READY = 9  # all nodes are ready: ranks use the fabric addresses
    OFF = 10  # ranks do not use them, `text` says why
    TROUBLE = 11
    MET = 12  # a node's fabric-pathd is known
    MET_AGAIN = 13  # it was started anew
    SHARE = 14  # the job has its share of the rails; `text` says how much
    PACED = 15  # it slows down: packets wait on the way
    REROUTED = 16  # its streams go round a queue, or back
    PORT = 17  # an InfiniBand or RoCE port was lost, or is active again


class PathLevel(IntEnum):
    """How good a rail to a peer is."""

    GOOD = 0
    POOR = 1  # carries packets: lossy, slow, drained, or not yet proven again
    DEAD = 2


class PathReason(IntEnum):
    """Why it is not good."""

    NONE = 0
    SILENT = 1  # probes stopped while another rail delivered the peer's
    CARRIER = 2  # the node's own port has no carrier
    TOLD = 3  # the peer finds it bad
    LOSS = 4
    SIZE = 5  # only large packets are lost
    SLOW = 6  # queueing far above the other rails'
    DRAINED = 7  # taken out by an administrator


PATH_EVENT = Table(
    "path_event",
    30,
    "What the mover of the job's TCP traffic saw and did. A time of 0: there was none.",
    (
        time_column("When it was reported."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("event", "B", "1", "What happened.", values=PathEvent),
        Column("peer", "48s", "1", "The other node; empty: all of them."),
        RAIL_INDEX,
        Column("level", "B", "1", "How good the rail to the peer is now.", values=PathLevel),
        Column("reason", "B", "1", "Why.", values=PathReason),
        Column(
            "begin_mono_ns", "q", "ns", "When it truly began, at the latest; 0: not said.", MONO
        ),
        Column("moved_mono_ns", "q", "ns", "When the routes were changed; 0: no move.", MONO),
        Column("recovered_mono_ns", "q", "ns", "When all streams ran again; 0: not seen.", MONO),
        Column("streams", "I", "1", "Streams that had unacknowledged data at the move."),
        Column("waiting_bytes", "Q", "B", "Their unacknowledged data at the move."),
        Column("text", "120s", "1", "What else there is to say."),
    ),
)
