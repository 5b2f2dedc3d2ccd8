"""``fabricctl``: the table of commands, and the one place that prints errors and exits."""

import importlib
import os
import sys
from collections.abc import Mapping

import click

from fabricctl import __version__
from fabricctl.errors import FabricError

# name: (module that has the click command as `command`, help line). The only registry: modules
# are imported when their command is called, so that --help stays fast.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "clock": ("fabricctl.cli.clock", "The job clock: its state, its time, what was first."),
    "audit": ("fabricctl.cli.audit", "Are nodes fit to be handed to users."),
    "ckpt": ("fabricctl.cli.ckpt", "Checkpoints of programs that write files."),
    "config": ("fabricctl.cli.config", "Show and check the site's configuration."),
    "events": ("fabricctl.cli.events", "What happens on the cluster, line by line."),
    "export": ("fabricctl.cli.export", "A job's trace as Parquet or OpenMetrics."),
    "fleet-report": ("fabricctl.cli.fleet_report", "Where the time of many jobs went."),
    "changes": ("fabricctl.cli.changes", "What these commands changed, by whom and when."),
    "head": ("fabricctl.cli.head", "The head service, fabricd, which gathers what nodes report."),
    "health": ("fabricctl.cli.health", "What findings about nodes lead to, within bounds."),
    "inventory": ("fabricctl.cli.inventory", "What nodes have, against what they should have."),
    "job": ("fabricctl.cli.job", "One job: what is known of it, and what happened to it."),
    "lab": ("fabricctl.cli.lab", "A real multi-node Slurm on this machine, with faults."),
    "lemons": ("fabricctl.cli.lemons", "Nodes that fail again and again."),
    "maintenance": ("fabricctl.cli.maintenance", "Update nodes with a bounded share of them out."),
    "manual": ("fabricctl.cli.manual", "Man pages and shell completion."),
    "metrics": ("fabricctl.cli.metrics", "The cluster for Prometheus (OpenMetrics)."),
    "node": ("fabricctl.cli.node", "The service that runs on every compute node."),
    "path": ("fabricctl.cli.path", "Link failover of the jobs on this node."),
    "place": ("fabricctl.cli.place", "Where a job lies on the fabric, and where one should."),
    "plan": ("fabricctl.cli.plan", "What failures will do to a job, and what spares save."),
    "run": ("fabricctl.cli.run", "Start a program in a job, again on a spare when a node dies."),
    "report": ("fabricctl.cli.report", "What happened to a job, and where its time went."),
    "top": ("fabricctl.cli.top", "The cluster live: jobs, nodes, links; sort, filter, look into."),
    "usage": ("fabricctl.cli.usage", "Who used the cluster, what faults took, what it costs."),
    "status": ("fabricctl.cli.status", "The cluster on one screen, and what is open."),
    "site": ("fabricctl.cli.site", "Check what this machine needs and has."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(COMMANDS.items())])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fabricctl")
def cli() -> None:
    """Keeps big Slurm jobs running through fabric faults, and says where the time went.

    Users add --fabric-resilience to sbatch, salloc or srun; see `fabricctl report` for what came
    of it. Every command has --help.
    """


def main() -> None:
    """Entry point. Exit statuses: 0 done, 1 failed, 2 usage, others from sysexits.h."""
    try:
        # What `ctx.exit(status)` said comes back as a value (click 8.2), every other end as None.
        status = cli.main(prog_name="fabricctl", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FabricError as error:
        click.echo(f"fabricctl: {error}", err=True)
        sys.exit(error.exit_status)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fabricctl: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
