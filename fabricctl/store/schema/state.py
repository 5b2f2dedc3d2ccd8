"""Tables 40 to 49: ranks, checkpoints, launches (docs/tracker.md, docs/checkpoints.md)."""

from enum import IntEnum

from fabricctl.store.schema.base import MONO, REAL, Column, Table, time_column


class RankState(IntEnum):
    """Life of a rank of the job's program, as its tracker and its process say."""

    STARTING = 0
    RUNNING = 1
    FINALIZED = 2
    ABORTED = 3
    GONE = 4  # the process ended without MPI_Finalize
    STOPPED = 5  # the process was stopped by a signal


class CheckpointEvent(IntEnum):
    """What a program's ranks did together (docs/checkpoints.md)."""

    SAVED = 0
    RESTORED = 1  # from memory
    RESTORED_SHARED = 2  # from the shared file system
    BEGUN = 3  # there was nothing to go on from
    DONE = 4  # the program ended well: nothing is held for it any more


class LaunchEvent(IntEnum):
    """What `fabricctl run` did (docs/checkpoints.md)."""

    START = 0  # of the program on `node`
    END = 1  # it ended well
    RANKS_DEAD = 2  # the program ended otherwise, its nodes live
    NODE_DEAD = 3
    GIVE_UP = 4  # it is not started again, `text` says why
    HANG = 5  # its ranks hung, `text` says how, and were ended
    SCRIPT_LOST = 6  # the job script's node died, `text` says what Slurm was asked for and by whom


class StallKind(IntEnum):
    """Whom a stall is laid to (docs/tracker.md)."""

    NONE = 0  # it is over
    APPLICATION = 1
    RANK = 2
    HOST = 3
    LINK = 4


_RANK = Column("rank", "I", "1", "Rank in MPI_COMM_WORLD.")
_LAUNCH = Column(
    "launch", "I", "1", "Which start of the program in this job, from 0; of srun alone, the step."
)

RANK = Table(
    "rank",
    40,
    "A rank of an MPI program whose calls are tracked: one row when it is seen and one each time "
    "its state changes (docs/tracker.md).",
    (
        time_column("When the agent saw it."),
        _RANK,
        _LAUNCH,
        Column("ranks", "I", "1", "Size of MPI_COMM_WORLD."),
        Column("pid", "I", "1", "Its process."),
        Column("step", "24s", "1", "Job step as Slurm writes it."),
        Column("library", "40s", "1", "Which MPI: `Open MPI`, `MPICH ABI`."),
        Column("state", "B", "1", "Of the rank.", values=RankState),
    ),
)

MPI_TIME = Table(
    "mpi_time",
    41,
    "Time in MPI: sums since the rank's MPI_Init, one row a sample, rank and operation that was "
    "called since the sample before; take differences. Samples come every second, on nodes with "
    "more than 8 ranks every (ranks / 8) seconds, 16 at most, and once at the job's end.",
    (
        time_column("When the sums were read."),
        _RANK,
        _LAUNCH,
        Column("op", "32s", "1", "The operation, as `MPI_Allreduce`."),
        Column("calls", "Q", "1", "Calls that returned."),
        Column("time_ns", "Q", "ns", "Time between entry and return of these calls."),
        Column(
            "bytes",
            "Q",
            "B",
            "Count times size of the type that this rank passed; calls with "
            "a count for each peer (MPI_Alltoallv...) add nothing.",
        ),
        Column("most_ns", "Q", "ns", "The longest call."),
    ),
)

RANK_POSITION = Table(
    "rank_position",
    42,
    "Where each rank stands, one row a sample as for `mpi_time`.",
    (
        time_column("When it was read."),
        _RANK,
        _LAUNCH,
        Column("calls", "Q", "1", "Entries and returns so far: odd while the rank is in a call."),
        Column("op", "32s", "1", "The call that it is in, or was in last."),
        Column("since_mono_ns", "q", "ns", "When it entered, or returned from, that call.", MONO),
        Column(
            "comm",
            "Q",
            "1",
            "Communicator: 1 MPI_COMM_WORLD, 2 MPI_COMM_SELF, 0 not known, "
            "else the same number on all its ranks.",
        ),
        Column("coll", "I", "1", "Number of the collective on it, from 1; 0: no collective."),
        Column(
            "peer",
            "I",
            "1",
            "Destination, source or root in the communicator; 4294967295 or "
            "a number that is no rank: none, or any.",
        ),
        Column("step", "Q", "1", "Iterations that the program told; 0: it tells none."),
    ),
)

STALL = Table(
    "stall",
    43,
    "Verdicts on ranks that wait without end in sight, from the agent that coordinates: a row "
    "when one is found or changes, and one of kind `none` when the ranks go on.",
    (
        time_column("When the verdict was made."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("kind", "B", "1", "Whom it is laid to.", values=StallKind),
        Column("rank", "I", "1", "The rank at fault, 4294967295: none or several."),
        Column("node", "48s", "1", "Its node, or the host or link at fault; empty: none."),
        Column("since_mono_ns", "q", "ns", "When the ranks began to wait.", MONO),
        Column("waiting", "I", "1", "How many ranks wait."),
        Column("text", "200s", "1", "The verdict in words."),
    ),
)

CHECKPOINT = Table(
    "checkpoint",
    44,
    "Checkpoints as the program told them, by rank 0 (docs/checkpoints.md).",
    (
        time_column("When it was told."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("event", "B", "1", "What happened.", values=CheckpointEvent),
        _LAUNCH,
        Column("step", "Q", "1", "Iteration that was saved or restored."),
        Column("ranks", "I", "1", "Ranks that took part."),
        Column("bytes", "Q", "B", "State of rank 0."),
        Column("stall_ns", "Q", "ns", "How long the slowest rank was kept from its work."),
    ),
)

LAUNCH = Table(
    "launch",
    45,
    "Starts and ends of the program under `fabricctl run`, and what it died of.",
    (
        time_column("When it was told."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("event", "B", "1", "What happened.", values=LaunchEvent),
        _LAUNCH,
        Column("node", "48s", "1", "The nodes: that it starts on, or that died; a host list."),
        Column("text", "120s", "1", "What else there is to say."),
    ),
)
