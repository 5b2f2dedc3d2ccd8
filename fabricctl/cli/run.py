"""``fabricctl run``: the ranks of a program, started again where something died."""

import os
import sys

import click

from fabricctl import config, hostlist, layout
from fabricctl.agent.ask import Member, job_here
from fabricctl.errors import UsageError
from fabricctl.launch import placement
from fabricctl.launch.supervise import Policy, Supervisor


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--spares", type=click.IntRange(0), help="Nodes held back; default: --fabric-spares.")
@click.option("--ntasks", "-n", type=click.IntRange(1), help="Ranks; default: as sbatch was told.")
@click.option("--max-restarts", type=click.IntRange(0), default=20, show_default=True)
@click.option("--mpi", default="pmix", show_default=True, help="How srun starts MPI.")
@click.option("--no-track", is_flag=True, help="Leave MPI calls alone.")
@click.option("--srun", "srun", multiple=True, metavar="OPTION", help="Handed on to srun.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(  # noqa: PLR0917 - click hands them by name
    spares: int | None,
    ntasks: int | None,
    max_restarts: int,
    mpi: str,
    no_track: bool,
    srun: tuple[str, ...],
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM on the nodes of this job, again on a spare when a node dies.

    Inside of a job script, in the place of srun. When a rank or a node dies the program is started
    again in the same allocation, without a requeue; programs that use checkpoints
    (docs/checkpoints.md) go on from the last one. Submit with --no-kill, so that Slurm does not
    end the job for a node that it has lost.
    """
    settings = config.load()
    member = Member.here(layout.NodeFiles(settings.node.run_dir), job_here(None))
    listed = os.environ.get("SLURM_JOB_NODELIST")
    nodes = hostlist.expand(listed) if listed else list(member.nodes)
    if not set(nodes) <= set(member.nodes):
        raise UsageError("run: SLURM_JOB_NODELIST names nodes that are not of this job")
    held = member.spares if spares is None else spares
    placed = placement.first(nodes, member.node, held, ntasks or _tasks(len(nodes), held))
    policy = Policy(max_restarts, mpi, not no_track, srun)
    supervisor = Supervisor(member, settings, placed, program, policy)
    sys.exit(supervisor.run())


def _tasks(nodes: int, spares: int) -> int | None:
    """As sbatch was told, less what would have run on the spares."""
    each, total = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS_PER_NODE", "NTASKS"))
    if each and each.isdecimal():
        return int(each) * (nodes - spares)
    if not total or not total.isdecimal():
        return None
    return int(total) * (nodes - spares) // nodes if int(total) >= nodes else int(total)
