"""``fabricctl ckpt``: checkpoints of programs that write files."""

import os
from pathlib import Path

import click

from fabricctl.errors import UsageError
from fabricctl.state.ckpt.files import Alone, Files

_dir = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="FABRIC_CKPT_DIR",
    required=True,
    help="This rank's files; default: $FABRIC_CKPT_DIR.",
)
_name = click.option("--name", default="files", show_default=True, help="Which checkpoint.")


@click.group()
def command() -> None:
    """Checkpoints of programs that write files, in any language (docs/checkpoints.md).

    To be called by every rank, inside of a protected job's step.
    """


@command.command()
@click.argument("step", type=click.IntRange(0))
@_dir
@_name
@click.option("--scheme", type=click.Choice(["single", "partner", "xor", "rs"]),
              envvar="FABRIC_CKPT_SCHEME", default="partner", show_default=True)  # fmt: skip
@click.option("--copies", type=click.IntRange(0, 8), default=1, show_default=True,
              help="With partner: nodes that hold a copy.")  # fmt: skip
@click.option("--losses", type=click.IntRange(1, 7), default=2, show_default=True,
              help="With rs: members of a set that may be lost.")  # fmt: skip
def commit(  # noqa: PLR0917 - click hands them by name
    step: int, directory: Path, name: str, scheme: str, copies: int, losses: int
) -> None:
    """The files in this rank's directory are the state of STEP; returns when they are safe."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory")
    files = Files(_who(), name=name, copies=copies, scheme=scheme, losses=losses)
    count = files.commit(directory, step)
    click.echo(f"step {step}: {count} files", err=True)


@command.command()
@_dir
@_name
@click.option("--before", type=click.IntRange(0), help="Only an older step than this.")
def restore(directory: Path, name: str, before: int | None) -> None:
    """Write the newest step's files into this rank's directory; print the step.

    Status 66 when there is none that all ranks have.
    """
    directory.mkdir(parents=True, exist_ok=True)
    click.echo(Files(_who(), name=name).fetch(directory, before))


@command.command(name="list")
@_name
def list_steps(name: str) -> None:
    """The steps that all ranks have, oldest first."""
    for step in sorted(Files(_who(), name=name).steps()):
        click.echo(step)


@command.command()
@_name
def done(name: str) -> None:
    """The program ended well: its checkpoints are not needed any more. By every rank."""
    Files(_who(), name=name).close(done=True)


def _who() -> Alone:
    """This rank, from Slurm or from an MPI's launcher."""
    for rank, ranks in (
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
    ):
        given = os.environ.get(rank, ""), os.environ.get(ranks, "")
        if given[0].isdecimal() and given[1].isdecimal():
            return Alone(int(given[0]), int(given[1]))
    raise UsageError(
        "ckpt: not a rank of a step: neither SLURM_PROCID nor an MPI's variable is set"
    )
