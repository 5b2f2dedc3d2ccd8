"""``fabricctl run``: the ranks of a program, started again where something died."""

import os
import sys

import click

from fabricctl import config, hostlist, layout
from fabricctl.agent.ask import job_here
from fabricctl.errors import UsageError
from fabricctl.launch import placement
from fabricctl.launch.policy import Policy
from fabricctl.launch.supervise import Supervisor
from fabricctl.membership import Member


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--spares", type=click.IntRange(0), help="Nodes held back; default: --fabric-spares.")
@click.option("--ntasks", "-n", type=click.IntRange(1), help="Ranks; default: as sbatch was told.")
@click.option("--max-restarts", type=click.IntRange(0), default=20, show_default=True)
@click.option("--min-nodes", type=click.IntRange(0), default=0, metavar="N",
              help="With no spare left, go on with fewer ranks, on N nodes or more.")  # fmt: skip
@click.option("--exclude", metavar="NODES", help="Nodes of the job that are not to be used.")
@click.option("--hang-timeout", type=click.FloatRange(0), metavar="S",
              help="A hang that lasts S seconds is ended and started again; 0: never. "
              "Default: 5 times the longest usual phase, 10 at least.")  # fmt: skip
@click.option("--before-end", type=click.FloatRange(0), metavar="S",
              help="All save and end S seconds before the job's time limit.")  # fmt: skip
@click.option("--live", is_flag=True,
              help="Others run on while a spare takes a dead one's place.")  # fmt: skip
@click.option("--mpi", help="How srun starts MPI; default: pmix, with --live none.")
@click.option("--no-track", is_flag=True, help="Leave MPI calls alone.")
@click.option("--nccl", is_flag=True, help="Track NCCL's operations on GPUs, too (untried there).")
@click.option("--srun", "srun", multiple=True, metavar="OPTION", help="Handed on to srun.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(  # noqa: PLR0917 - click hands them by name
    spares: int | None,
    ntasks: int | None,
    max_restarts: int,
    min_nodes: int,
    exclude: str | None,
    hang_timeout: float | None,
    before_end: float | None,
    live: bool,
    mpi: str | None,
    no_track: bool,
    nccl: bool,
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
    left_out = set(hostlist.expand(exclude)) if exclude else set()
    if unknown := left_out - set(nodes):
        raise UsageError(f"run: --exclude {hostlist.fold(unknown)}: not of this job")
    many = len(nodes) - len(left_out)
    tasks = ntasks or _tasks(len(nodes), held + len(left_out))
    placed = placement.first(nodes, member.node, min(held, many), tasks, left_out)
    policy = Policy(
        max_restarts=max_restarts,
        mpi=mpi or ("none" if live else "pmix"),
        track=not no_track,
        nccl=nccl,
        options=srun,
        hang_s=hang_timeout,
        min_nodes=min_nodes,
        halt_at_s=_halt_at(before_end),
        live=live,
    )
    supervisor = Supervisor(member, settings, placed, program, policy)
    sys.exit(supervisor.run())


def _halt_at(before_end_s: float | None) -> float | None:
    """Unix time; raises :class:`UsageError` when the job's end is not known."""
    if before_end_s is None:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if not end.isdecimal():
        raise UsageError("run: --before-end: this Slurm does not tell jobs their end")
    return int(end) - before_end_s


def _tasks(nodes: int, spares: int) -> int | None:
    """As sbatch was told, less what would have run on the spares."""
    each, total = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS_PER_NODE", "NTASKS"))
    if each and each.isdecimal():
        return int(each) * (nodes - spares)
    if not total or not total.isdecimal():
        return None
    return int(total) * (nodes - spares) // nodes if int(total) >= nodes else int(total)
