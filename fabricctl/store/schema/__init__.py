"""The one schema of traces: tables, columns, units and clocks.

The journal (written live by the agent) and the HDF5 trace (made from it) are both laid out from
this package, a module for each range of table numbers, and ``docs/data-format.md`` is tested
against it. It imports nothing but the standard library, so that the agent stays small.
"""

from fabricctl.store.schema.attributes import JOB_ATTRIBUTES, NODE_ATTRIBUTES, TRACE_ATTRIBUTES
from fabricctl.store.schema.base import MONO, NOT_MEASURED, REAL, Attribute, Column, Table
from fabricctl.store.schema.clock import DELAY, JOB_CLOCK, ClockStatus, StampSource
from fabricctl.store.schema.node import (
    CLOCK,
    HOST,
    JOB,
    LIFE,
    LINK_EVENT,
    NOTE,
    RAIL,
    STEP,
    LinkEvent,
    Severity,
    StepEvent,
)
from fabricctl.store.schema.paths import PATH_EVENT, PathEvent, PathLevel, PathReason
from fabricctl.store.schema.sources import PHASE, READING, TCP_FLOW
from fabricctl.store.schema.state import (
    CHECKPOINT,
    LAUNCH,
    MPI_TIME,
    RANK,
    RANK_POSITION,
    STALL,
    CheckpointEvent,
    LaunchEvent,
    RankState,
    StallKind,
)
from fabricctl.store.schema.telemetry import GPU, RDMA_PORT, TCP

SCHEMA_VERSION = 1

TABLES: tuple[Table, ...] = (
    RAIL,
    HOST,
    JOB,
    LINK_EVENT,
    NOTE,
    CLOCK,
    STEP,
    LIFE,
    JOB_CLOCK,
    DELAY,
    PATH_EVENT,
    GPU,
    RDMA_PORT,
    TCP,
    RANK,
    MPI_TIME,
    RANK_POSITION,
    STALL,
    CHECKPOINT,
    LAUNCH,
    READING,
    TCP_FLOW,
    PHASE,
)
BY_NUMBER = {table.number: table for table in TABLES}
BY_NAME = {table.name: table for table in TABLES}

__all__ = [
    "BY_NAME",
    "BY_NUMBER",
    "CHECKPOINT",
    "CLOCK",
    "DELAY",
    "GPU",
    "HOST",
    "JOB",
    "JOB_ATTRIBUTES",
    "JOB_CLOCK",
    "LAUNCH",
    "LIFE",
    "LINK_EVENT",
    "MONO",
    "MPI_TIME",
    "NODE_ATTRIBUTES",
    "NOTE",
    "NOT_MEASURED",
    "PATH_EVENT",
    "PHASE",
    "RAIL",
    "RANK",
    "RANK_POSITION",
    "RDMA_PORT",
    "READING",
    "REAL",
    "SCHEMA_VERSION",
    "STALL",
    "STEP",
    "TABLES",
    "TCP",
    "TCP_FLOW",
    "TRACE_ATTRIBUTES",
    "Attribute",
    "CheckpointEvent",
    "ClockStatus",
    "Column",
    "LaunchEvent",
    "LinkEvent",
    "PathEvent",
    "PathLevel",
    "PathReason",
    "RankState",
    "Severity",
    "StallKind",
    "StampSource",
    "StepEvent",
    "Table",
]
