"""``fabricctl run``: the ranks of a program, started again where something died."""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from fabricctl import hostlist, layout
from fabricctl.agent.ask import job_here
from fabricctl.errors import UsageError
from fabricctl.launch import placement, unprotected
from fabricctl.launch.policy import Policy
from fabricctl.launch.supervise import Supervisor


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
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        raise UsageError("run: in the place of srun, once, not under it")
    if nccl and no_track:
        raise UsageError("run: --nccl tells the tracker, and --no-track leaves it out")
    settings = unprotected.settings()
    job = job_here(None)
    member = unprotected.member_or_none(settings.node.run_dir, job)
    listed = os.environ.get("SLURM_JOB_NODELIST")
    nodes = hostlist.expand(listed) if listed else list(member.nodes if member else ())
    if member and not set(nodes) <= set(member.nodes):
        raise UsageError("run: SLURM_JOB_NODELIST names nodes that are not of this job")
    asked = member.spares if member else unprotected.asked_spares()
    held = asked if spares is None else spares
    left_out = set(hostlist.expand(exclude)) if exclude else set()
    if unknown := left_out - set(nodes):
        raise UsageError(f"run: --exclude {hostlist.fold(unknown)}: not of this job")
    tasks = ntasks or _tasks(len(nodes), held + len(left_out))
    here = member.node if member else os.environ.get("SLURMD_NODENAME", "")
    placed = placement.first(nodes, here, held, tasks, left_out)
    policy = Policy(
        max_restarts=max_restarts,
        mpi=mpi or ("none" if live else "pmix"),
        track=not no_track,
        nccl=nccl,
        options=srun,
        hang_s=hang_timeout,
        min_nodes=min_nodes,
        halt_at_s=_halt_at(before_end, job),
        live=live,
    )
    if member is None:
        unprotected.become_srun(placed, policy, program)
    supervisor = Supervisor(member, settings, placed, program, policy)
    with alone(layout.NodeFiles(settings.node.run_dir).track_dir(job)):
        sys.exit(supervisor.run())


@contextlib.contextmanager
def alone(job_dir: Path) -> Iterator[None]:
    """Two at once would take each other's ranks, checkpoints and orders for their own. The lock is
    the job's own directory, and goes with the process. Raises :class:`UsageError`."""
    try:
        fd = os.open(job_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # without a tracker there is none
        yield
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError("run: another `fabricctl run` of this job is still there") from None
        yield
    finally:
        os.close(fd)


def _halt_at(before_end_s: float | None, job: int) -> float | None:
    """Unix time; raises :class:`UsageError` when the job has no end, or it is nearer than that."""
    if before_end_s is None:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME", "")  # of Slurm 23.11 and later
    end_s = float(end) if end.isdecimal() else _ends_at(job)
    if end_s is None:
        raise UsageError("run: --before-end: the job has no time limit")
    if end_s - before_end_s <= time.time():
        raise UsageError(f"run: --before-end {before_end_s:g}: the job ends sooner than that")
    return end_s - before_end_s


def _ends_at(job: int) -> float | None:
    from fabricctl.slurm.choose import open_slurm

    known = open_slurm().job(job)
    if known.start_real_s is None or known.time_limit_s is None:
        return None
    return known.start_real_s + known.time_limit_s


def _tasks(nodes: int, spares: int) -> int | None:
    """As sbatch was told, less what would have run on the spares."""
    each, total = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS_PER_NODE", "NTASKS"))
    if each and each.isdecimal():
        return int(each) * (nodes - spares)
    if not total or not total.isdecimal():
        return None
    return int(total) * (nodes - spares) // nodes if int(total) >= nodes else int(total)
