"""``fabricctl job``: one job. Each subcommand is a file of its own, listed in the table below."""

import importlib
from collections.abc import Mapping

import click

# name: (module that has the click command as `command`, help line)
SUBCOMMANDS: Mapping[str, tuple[str, str]] = {
    "events": ("fabricctl.cli.job_events", "What happened to a job, line by line."),
    "halt": ("fabricctl.cli.job_halt", "End the program that `fabricctl run` started."),
    "migrate": ("fabricctl.cli.job_migrate", "Move a job's ranks from a node to a spare."),
    "show": ("fabricctl.cli.job_show", "What is known of a job, running or ended."),
    "where": ("fabricctl.cli.job_where", "Which call each rank is in, and why ranks wait."),
}


class _LazyJob(click.Group):
    """Subcommands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in SUBCOMMANDS:
            return None
        command = importlib.import_module(SUBCOMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{SUBCOMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(SUBCOMMANDS.items())])


@click.group(cls=_LazyJob)
def command() -> None:
    """One job: what is known of it, and what happened to it."""
