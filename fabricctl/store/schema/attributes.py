"""Attributes of jobs and nodes."""

from fabricctl.store.schema.base import REAL, Attribute


def _begin_end(of: str, required: bool) -> tuple[Attribute, Attribute]:
    return (
        Attribute("begin_real_ns", "int", "ns", f"When {of} began.", REAL, required),
        Attribute("end_real_ns", "int", "ns", f"When {of} ended.", REAL, required),
    )


# From the start request and the agent; on the file's root.
JOB_ATTRIBUTES = (
    Attribute("job", "int", "1", "Slurm's job id.", required=True),
    Attribute("user", "text", "1", "The job's user."),
    Attribute("uid", "int", "1", "That user's number."),
    Attribute("cluster", "text", "1", "Slurm's ClusterName."),
    Attribute("mode", "text", "1", "`observe` or `on`."),
    Attribute("spares", "int", "1", "Nodes held back."),
    Attribute("nodes", "text", "1", "Host list of the allocation.", required=True),
    Attribute("array_job", "int", "1", "Id of the job array, for a task of one."),
    Attribute("array_task", "int", "1", "Index in the job array."),
    Attribute("het_job", "int", "1", "Id of the heterogeneous job, for a component of one."),
    Attribute("het_offset", "int", "1", "The component's index."),
)

# On a node's group.
NODE_ATTRIBUTES = (
    Attribute("node", "text", "1", "Slurm's NodeName.", required=True),
    Attribute("hostname", "text", "1", "The kernel's own host name."),
    Attribute("boot_id", "text", "1", "The kernel's boot id: CLOCK_MONOTONIC counts from it."),
    Attribute("agent_version", "text", "1", "Version of the agent that wrote the journal."),
    Attribute("rails", "text", "1", "Interfaces in rail order, with a space between them."),
    Attribute("addresses", "text", "1", "The rails' addresses, `0/10.78.0.11`, spaces between."),
    Attribute("sample_hz", "float", "Hz", "Samples asked for per second."),
    *_begin_end("the allocation on this node", required=True),
    Attribute("lives", "int", "1", "How often the agent was started: journals, rows of `life`."),
)

# On the file's root as well, set by who writes it.
TRACE_ATTRIBUTES = (
    Attribute("format", "text", "1", "`fabricctl-trace`.", required=True),
    Attribute("schema_version", "int", "1", "Version of this format.", required=True),
    Attribute("missing_nodes", "text", "1", "Nodes of `nodes` without a trace (yet), a host list."),
    Attribute("written_by", "text", "1", "Program and version that wrote the file."),
    Attribute("collected_real_ns", "int", "ns", "When the file was last written.", REAL),
    *_begin_end("the job", required=True),
)
